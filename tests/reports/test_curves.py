"""What is drawn: means, bands, smoothing and thinning, worked by hand."""

import pytest

from errata.reports.curves import MAX_POINTS, bands, clocks, sections
from errata.reports.rundir import RunDirectory
from errata.reports.runs import load


def run_of(path, rewards, *, seed=0, method="grpo", evals=()):
    run = RunDirectory(path)
    run.open({"method": method, "seed": seed, "per_device_train_batch_size": 4})
    for step, reward in enumerate(rewards, 1):
        row = {"step": step, "reward": reward, "step_time": 3.0, "completions/mean_length": 10.0, "mine": 1.0}
        run.write("metrics", row)
    for step, value in evals:
        run.write("eval", {"step": step, "k": 2, "avg@2": value, "avg@2_low": value - 0.1, "avg@2_high": value + 0.1})
    return path


def series(runs, title):
    panels = {panel.title: panel for section in sections(runs) for panel in section.panels}
    return panels[title].series


def test_a_short_run_is_drawn_as_it_is(tmp_path):
    (line,) = series(load([run_of(tmp_path / "a", [0.0, 0.5, 1.0])]), "Reward")
    assert (line.x, line.y, line.raw) == ([1, 2, 3], [0.0, 0.5, 1.0], None)


def test_a_long_one_is_smoothed_over_a_twentieth_before_its_raw_values(tmp_path):
    rewards = [float(i % 2) for i in range(60)]
    (line,) = series(load([run_of(tmp_path / "a", rewards)]), "Reward")
    # 60 // 20 = 3 values: the ends have two of them.
    assert line.y[:4] == pytest.approx([0.5, 1 / 3, 2 / 3, 1 / 3], abs=1e-4)
    assert line.raw == rewards


def test_evaluations_keep_their_points_and_their_own_interval(tmp_path):
    (line,) = series(load([run_of(tmp_path / "a", [0.0] * 9, evals=[(0, 0.2), (9, 0.6)])]), "avg@2")
    assert (line.x, line.y) == ([0, 9], [0.2, 0.6])
    assert line.low == pytest.approx([0.1, 0.5])


def test_two_seeds_span_their_band_and_three_have_an_interval(tmp_path):
    paths = [run_of(tmp_path / str(i), [value], seed=i) for i, value in enumerate([0.1, 0.2, 0.3])]
    (two,) = series(load(paths[:2]), "Reward")
    assert (two.y, two.low, two.high) == ([0.15], [0.1], [0.2])
    assert two.seeds == [("seed 0", [0.1]), ("seed 1", [0.2])]
    (three,) = series(load(paths), "Reward")
    assert three.y == [0.2]
    assert three.low[0] == pytest.approx(0.2 - 4.303 * 0.1 / 3**0.5, abs=1e-4)
    assert "two seeds" in bands(load(paths[:2]))
    assert "Student" in bands(load(paths))


def test_seeds_are_averaged_over_the_steps_all_of_them_have(tmp_path):
    paths = [run_of(tmp_path / "a", [0.0, 0.0, 0.0]), run_of(tmp_path / "b", [1.0], seed=1)]
    (line,) = series(load(paths), "Reward")
    assert (line.x, line.y) == ([1], [0.5])


def test_methods_share_a_chart_and_keep_their_colour(tmp_path):
    paths = [run_of(tmp_path / "a", [0.0]), run_of(tmp_path / "b", [1.0], method="drift")]
    lines = series(load(paths), "Reward")
    assert [(line.name, line.colour, line.y) for line in lines] == [("grpo", 0, [0.0]), ("drift", 1, [1.0])]


def test_long_runs_are_thinned_to_their_ends(tmp_path):
    (line,) = series(load([run_of(tmp_path / "a", [0.5] * 1000)]), "Reward")
    assert len(line.x) == MAX_POINTS
    assert (line.x[0], line.x[-1]) == (1, 1000)


def test_a_metric_nobody_knows_is_drawn_folded_away(tmp_path):
    found = sections(load([run_of(tmp_path / "a", [0.5])]))
    assert "mine" in [panel.title for panel in found[-1].panels]
    assert not found[-1].open


def test_clocks_count_time_and_generated_tokens(tmp_path):
    clock = clocks(load([run_of(tmp_path / "a", [0.0] * 4)]))["grpo"]
    # 3 s and 4 attempts of 10 tokens a step.
    assert clock["step"] == [0, 1, 2, 3, 4]
    assert clock["minutes"] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert clock["tokens"] == [0, 40, 80, 120, 160]
