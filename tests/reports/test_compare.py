"""The comparison's numbers, worked by hand, and what it calls a tie."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from errata.reports.compare import (
    T_975,
    cell,
    compare,
    differ,
    interval,
    layout,
    number,
    reached,
    table,
    worst_drop,
)
from errata.reports.rundir import RunDirectory
from errata.reports.runs import load, tunings


def run_with(path, values, *, method="distil", seed=0, width=None, step_time=2.0, **settings):
    """A run evaluated every 10 steps, with avg@4 = ``values``; pass@4 is the same number."""
    run = RunDirectory(path)
    run.open({"method": method, "seed": seed, "per_device_train_batch_size": 32, **settings})
    for step in range(10 * len(values) - 9):
        if step:
            run.write("metrics", {"step": step, "step_time": step_time, "completions/mean_length": 5.0})
        if step % 10 == 0:
            row = {"step": step, "k": 4, "n_problems": 8}
            for name in ("avg@4", "pass@4"):
                value = values[step // 10]
                row |= {name: value}
                row |= {} if width is None else {f"{name}_low": value - width, f"{name}_high": value + width}
            run.write("eval", row)
    run.finish()
    return path


def column(comparison, name):
    return next(c for c in comparison.columns if c.name == name)


def rows(comparison, name):
    return {label: row[name] for label, row in comparison.rows.items()}


def test_the_quantiles_are_students():
    # Oracle: the density integrated by trapezoids from 0 to each quantile must hold 0.475 of the mass.
    for df, quantile in enumerate(T_975, 1):
        x = np.linspace(0, quantile, 200_001)
        norm = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
        assert np.trapezoid(norm * (1 + x**2 / df) ** (-(df + 1) / 2), x) == pytest.approx(0.475, abs=3e-5)


def test_interval_by_hand():
    # 1, 2, 3: mean 2, s = 1, half-width 4.303/sqrt(3).
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.303 / 3**0.5)
    assert interval([0.5]).low is None


def test_an_interval_of_shares_stays_within_0_and_1():
    found = interval([0.9, 1.0], share=True)
    assert found.high == 1.0
    assert found.low == pytest.approx(0.95 - 12.706 * 0.05 * 2**0.5 / 2**0.5)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="values"):
        interval([])


def test_one_runs_numbers(tmp_path):
    (run,) = load([run_with(tmp_path / "a", [0.1, 0.6, 0.3, 0.5])])
    assert worst_drop(run, "avg@4") == pytest.approx(0.3)
    assert reached(run, "avg@4", 0.5) == 10
    assert reached(run, "avg@4", 0.7) is None
    assert run.seconds_at(10) == 20.0
    assert run.tokens_at(30) == 30 * 32 * 5


def test_the_default_target_is_half_way(tmp_path):
    paths = [run_with(tmp_path / "a", [0.1, 0.3, 0.9]), run_with(tmp_path / "b", [0.1, 0.2, 0.3], method="grpo")]
    found = compare(load(paths))
    assert found.target == pytest.approx(0.5)
    assert rows(found, "steps to target")["distil"].mean == 20
    assert rows(found, "time to target")["distil"].mean == 40.0
    assert rows(found, "steps to target")["grpo"] is None


def test_a_target_that_one_seed_missed_is_not_averaged_over_the_others(tmp_path):
    paths = [run_with(tmp_path / "a", [0.0, 0.8], seed=0), run_with(tmp_path / "b", [0.0, 0.2], seed=1)]
    assert rows(compare(load(paths), target=0.5), "steps to target")["distil"] is None


def three_seeds(folder, method, ends):
    return [run_with(folder / f"{method}-{i}", [0.0, end], method=method, seed=i) for i, end in enumerate(ends)]


def test_pairing_by_seed_tells_apart_what_overlaps(tmp_path):
    # The seeds differ by far more than the methods, but each pair by the same 0.05.
    paths = three_seeds(tmp_path, "grpo", [0.10, 0.40, 0.70]) + three_seeds(tmp_path, "distil", [0.15, 0.45, 0.75])
    found = rows(compare(load(paths)), "avg@4")
    assert found["grpo"].high > found["distil"].low
    assert found["distil"].best
    assert not found["grpo"].tie


def test_a_difference_that_changes_its_sign_is_a_tie(tmp_path):
    paths = three_seeds(tmp_path, "grpo", [0.5, 0.6, 0.7]) + three_seeds(tmp_path, "distil", [0.6, 0.5, 0.8])
    found = rows(compare(load(paths)), "avg@4")
    # Differences 0.1, -0.1, 0.1: mean 0.033, half-width 4.303 * 0.1155 / sqrt(3) = 0.287.
    assert found["distil"].best
    assert found["grpo"].tie


def test_equal_results_tie(tmp_path):
    paths = three_seeds(tmp_path, "grpo", [0.5, 0.5]) + three_seeds(tmp_path, "distil", [0.5, 0.5])
    assert [(e.best, e.tie) for e in rows(compare(load(paths)), "avg@4").values()] == [(False, True)] * 2


def test_equal_best_share_the_crown(tmp_path):
    ends = {"grpo": [0.5, 0.5], "distil": [0.9, 0.9], "drift": [0.9, 0.9]}
    paths = [path for method, values in ends.items() for path in three_seeds(tmp_path, method, values)]
    assert {label: e.best for label, e in rows(compare(load(paths)), "avg@4").items()} == {
        "grpo": False, "distil": True, "drift": True,
    }  # fmt: skip


@pytest.mark.parametrize(("other", "apart"), [(0.62, False), (0.5, True)])
def test_single_seeds_are_differ_by_their_problems(tmp_path, other, apart):
    first = load([run_with(tmp_path / "a", [0.0, 0.7], width=0.05)])
    second = load([run_with(tmp_path / "b", [0.0, other], width=0.05, method="grpo")])
    found = compare([*first, *second])
    assert differ(first, second, column(found, "avg@4")) is apart
    assert rows(found, "avg@4")["grpo"].tie is not apart


def test_a_single_seed_crowns_no_number_without_an_interval(tmp_path):
    paths = [
        run_with(tmp_path / "a", [0.0, 0.9], width=0.01),
        run_with(tmp_path / "b", [0.0, 0.8], width=0.01, method="grpo"),
    ]
    found = compare(load(paths), target=0.5)
    assert not any(e.best or e.tie for e in rows(found, "time to target").values())


def test_the_only_one_to_reach_the_target_is_the_best(tmp_path):
    paths = [run_with(tmp_path / "a", [0.0, 0.9]), run_with(tmp_path / "b", [0.0, 0.1], method="grpo")]
    assert rows(compare(load(paths)), "steps to target")["distil"].best


@pytest.mark.parametrize("target", [0.0, 1.5, -1])
def test_a_target_that_is_no_share_is_refused(tmp_path, target):
    with pytest.raises(ValueError, match="target"):
        compare(load([run_with(tmp_path / "a", [0.1])]), target=target)


def test_runs_of_one_method_are_labelled_by_what_differs(tmp_path):
    mean = run_with(tmp_path / "a", [0.1], method_settings={"credit": "mean", "cost": "kl"})
    total = run_with(tmp_path / "b", [0.1], method_settings={"credit": "sum", "cost": "kl"}, seed=7)
    assert [run.label for run in load([mean, total])] == ["distil, credit mean", "distil, credit sum"]
    assert [run.label for run in load([mean])] == ["distil"]


def test_the_same_run_named_twice_counts_once(tmp_path):
    path = run_with(tmp_path / "a", [0.1])
    assert len(load([path, path / ".." / "a"])) == 1


def test_what_makes_runs_incomparable_is_said(tmp_path):
    paths = [run_with(tmp_path / "a", [0.1, 0.2], task="x"), run_with(tmp_path / "b", [0.1], method="grpo", task="y")]
    said = compare(load(paths)).warnings
    assert "runs differ in task: x, y" in said
    assert "runs differ in rollouts: from 0 to 320" in said


def test_the_table_as_a_user_reads_it(runs):
    out = io.StringIO()
    found = compare(load(runs.values()))
    Console(file=out, width=120).print(table(found))
    text = " ".join(out.getvalue().split())
    assert text.startswith("2 seeds, 40 steps, 5120 rollouts")
    assert "distil" in text
    assert "~ tie with the best" in text
    assert "steps" not in [c.name for c in layout(found)[0]]


def test_a_cell():
    found = interval([0.8, 0.9, 1.0], share=True)
    share = type("Share", (), {"kind": "share", "better": "higher"})
    # Half-width 4.303 * 0.1 / sqrt(3) = 0.248; the upper arm is cut at 1.
    assert cell(found, share) == "90.0 ±24.8"
    assert cell(None, share) == "–"


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [(0.8451, "share", "84.5"), (59, "seconds", "59s"), (600, "seconds", "10.0m"), (36000, "seconds", "10.0h"),
     (950, "number", "950"), (15360, "number", "15k"), (1_234_567, "number", "1.2M")],
)  # fmt: skip
def test_numbers_in_words(value, kind, text):
    assert number(value, kind) == text


def test_teachers_that_are_shown_different_things_are_named(tmp_path):
    from errata.reports.compare import teachers_differ, warnings
    from errata.reports.runs import Run

    def run(label, **settings):
        config = {"method": label, "method_settings": settings}
        return Run(tmp_path, label, label, config, {"status": "finished"}, [], [])

    told = warnings(
        [run("grpo"), run("sdpo", sources=["sibling"]), run("distil", sources=["reference"], with_feedback=True)]
    )
    assert told == [
        "teachers are not shown the same (sdpo: sibling; distil: reference with feedback); method_args sources under "
        "`compare:` make them alike"
    ]
    assert warnings([run("grpo"), run("sdpo", sources=["sibling"]), run("srpo", sources=["sibling"])]) == []
    same = {"sources": ["reference"], "with_feedback": True}
    assert teachers_differ({"distil": same, "opsd": same, "grpo": {}}) == []
    assert teachers_differ({"distil": same, "opsd": {"sources": ["reference"]}})[0].startswith(
        "teachers are not shown the same (distil: reference with feedback; opsd: reference);"
    )


@pytest.mark.parametrize(
    ("chosen", "scores", "end"),
    [
        (1e-3, {3e-4: 0.2, 1e-3: 0.5, 3e-3: 0.4}, ""),
        (3e-3, {3e-4: 0.2, 1e-3: 0.4, 3e-3: 0.5}, "highest"),
        (3e-4, {1e-3: 0.4, 3e-4: 0.5}, "lowest"),
        (1e-3, {1e-3: 0.0, 3e-3: 0.0}, ""),  # says nothing of either direction
        (1e-3, {1e-3: 0.4}, ""),
    ],
)
def test_a_best_rate_at_the_end_of_those_tried_is_named(chosen, scores, end):
    tried = [{"learning_rate": rate, "avg": score} for rate, score in scores.items()]
    (found,) = tunings({"distil": {"learning_rate": chosen, "trials": tried}})
    assert (found.end, list(found.trials)) == (end, sorted(scores.items()))
