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
    assert set(TASKS) <= set(out)
    assert tuple(out) == names()
