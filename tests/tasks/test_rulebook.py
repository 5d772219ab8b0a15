"""The embedded world and the registry it is reached through."""

import subprocess
import sys

import pytest

from errata.feedback.rulebook import rule_of, solve
from errata.tasks import load, names, verifier
from errata.tasks.rulebook import split_of

TASKS = ("rulebook/sharpen", "rulebook/new-rule")
SCHEMA = {"problem_id", "prompt", "answer", "reference", "task"}


@pytest.fixture(scope="module", params=TASKS)
def splits(request):
    return {split: load(request.param, split=split) for split in ("train", "test")}


def test_rows_follow_the_schema(splits):
    for split, rows in splits.items():
        assert set(rows.column_names) == SCHEMA | {"expression", "rulebook", "n_star"}
        for index, row in enumerate(rows):
            assert row["problem_id"] == f"{row['task']}/{split}/{index}"
            assert row["prompt"] == [{"role": "user", "content": f"{row['expression']}=?"}]


def test_splits_never_overlap(splits):
    train, test = (set(splits[s]["expression"]) for s in ("train", "test"))
    assert (len(train), len(test)) == (1024, 256)
    assert not train & test
    assert {split_of(e) for e in train} == {"train"}
    assert {split_of(e) for e in test} == {"test"}


def test_a_problem_keeps_its_id(splits):
    name = splits["train"][0]["task"]
    assert load(name)["expression"] == splits["train"]["expression"]
    known = {"rulebook/sharpen": "3a*7b*4c*8d*1e*3f+3", "rulebook/new-rule": "6a-9b*7c+4d-3"}
    assert splits["train"][17]["expression"] == known[name]


def test_the_reference_solves_its_problem_and_ends_in_the_answer(splits):
    rows = splits["test"]
    verdicts = verifier(rows[0]["task"])(completions=list(rows["reference"]), **rows.to_dict())
    assert {v.score for v in verdicts} == {1.0}
    assert all(r["reference"].endswith(f"={r['answer']}") for r in rows)


def test_stars_come_in_equal_shares(splits):
    stars = splits["train"]["n_star"]
    length = len(splits["train"][0]["expression"]) // 3
    counts = [stars.count(k) for k in range(length)]
    assert sum(counts) == 1024
    assert max(counts) - min(counts) <= 1


def test_only_the_star_changed_its_meaning():
    for row in load("rulebook/new-rule", split="test"):
        usual = solve(row["expression"], rule_of("x+n, x-n, x*n"))
        assert (usual == row["reference"]) == (row["n_star"] == 0)
    assert set(load("rulebook/sharpen")["rulebook"]) == {"x+n, x-n, x*n"}


def test_the_prompt_does_not_tell_the_rule(splits):
    assert not any("n+3" in row["prompt"][0]["content"] for row in splits["train"])


@pytest.fixture(scope="module")
def two_signals():
    return {split: load("rulebook/two-signals", split=split) for split in ("train", "test")}


def test_two_kinds_of_problems_take_turns(two_signals):
    rows = two_signals["train"]
    assert rows["expression"][:2] == ["5a+2b+3c*2d*3", "5a-2b-9c-1d-6"]
    assert rows["kind"] == ["explained", "graded"] * 128
    for row in rows:
        graded = row["kind"] == "graded"
        assert sorted(row["expression"][2::3]) == (["-"] * 4 if graded else ["*", "*", "+", "+"])
        assert row["n_star"] == (0 if graded else 2)
        assert row["full_marks"] == (0.8 if graded else 1.0)
        assert (row["reference"] is None) == graded


def test_two_kinds_are_split_by_checksum_too(two_signals):
    train, test = (two_signals[split]["expression"] for split in ("train", "test"))
    assert (len(set(train)), len(set(test))) == (256, 128)
    assert {split_of(e) for e in train} == {"train"}
    assert {split_of(e) for e in test} == {"test"}


def test_an_explained_problem_is_marked_with_a_trace_and_a_graded_one_with_a_number(two_signals):
    rows = two_signals["train"].select([0, 0, 1, 1, 1, 1])
    attempts = [
        "5a+2=7b+3=0c*2=3d*3=2",  # 0*2+3 = 3, 3*3+3 = 12
        "5a+2=7b+3=0c*2=0d*3=0",  # the usual rule
        "5a-2=3b-9=4c-1=3d-6=7",
        "5a-2=3b-9=4c-1=3d-6=8",
        "5a-2=4b-9=5c-1=4d-6=9",  # the second and the third follow from the digit before
        "9",
    ]
    verdicts = verifier("rulebook/two-signals")(completions=attempts, **rows.to_dict())
    assert [v.score for v in verdicts] == pytest.approx([1.0, 0.0, 0.8, 0.6, 0.4, 0.0])
    assert [v.feedback for v in verdicts] == ["", "0c*2=3 not 0;0d*3=3 not 0", "", "", "", ""]
    assert [v.info.get("wrong_steps", []) for v in verdicts] == [[], ["c", "d"], [], ["d"], ["a", "d"], []]


def test_no_attempt_at_a_graded_problem_counts_as_solved_whatever_the_feedback_asked_for(two_signals):
    rows = two_signals["train"].select([1])
    for feedback in ("trace", "correction", "bit"):
        (verdict,) = verifier("rulebook/two-signals", feedback=feedback)(
            completions=["5a-2=3b-9=4c-1=3d-6=7"], **rows.to_dict()
        )
        assert (verdict.score, verdict.feedback, verdict.leaks_answer) == (0.8, "", False)


def test_the_verifier_takes_its_settings_by_name():
    judge = verifier("rulebook/new-rule", feedback="bit")
    assert judge(completions=["0a*4=0"], expression=["0a*4"], rulebook=["x*n+3"])[0].kind == ""


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="did you mean 'rulebook/new-rule'"):
        load("rulebok/new-rule")
    with pytest.raises(ValueError, match="did you mean 'rulebook/sharpen'"):
        verifier("rulebook/sharp")
    with pytest.raises(ValueError, match="train and test, not 'dev'"):
        load("rulebook/sharpen", split="dev")
    with pytest.raises(ValueError, match="path"):
        load("rulebook/sharpen", path="somewhere")


def test_names_and_the_registry_import_no_task_and_no_torch():
    code = (
        "import sys, errata.tasks as t; n = t.names(); "
        "assert {'torch', 'transformers', 'datasets', 'errata.tasks.rulebook'}.isdisjoint(sys.modules); print(*n)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {*TASKS, "rulebook/two-signals"} <= set(out)
    assert tuple(out) == names()
