"""The programming problems: every right solution passes its tests in the sandbox, and others do not."""

import json

import pytest

from errata import tasks
from errata.tasks.programs._problem import CASES


@pytest.fixture(scope="module")
def rows():
    return [*tasks.load("programs", split="train"), *tasks.load("programs", split="test")]


def judged(rows, completions):
    columns = {name: [row[name] for row in rows] for name in ("tests", "function", "problem_id", "answer")}
    judge = tasks.verifier("programs")
    return judge(prompts=[row["prompt"] for row in rows], completions=completions, **columns)


def test_there_are_two_hundred_and_the_splits_share_none(rows):
    train, test = tasks.load("programs", split="train"), tasks.load("programs", split="test")
    assert len(rows) >= 200
    assert len(test) == len(rows) // 5
    assert not set(train["problem_id"]) & set(test["problem_id"])
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows)


def test_each_has_hidden_tests_beyond_the_two_shown(rows):
    for row in rows:
        tests = json.loads(row["tests"])
        assert len(tests) >= 6, row["problem_id"]
        assert len({test["input"] for test in tests}) == len(tests), row["problem_id"]
        outputs = [test["output"] for test in tests]
        assert len(set(outputs)) > 1, row["problem_id"]
        assert row["prompt"][0]["content"].count(f"\n{row['function']}(") == 2


@pytest.mark.parametrize(
    "part", [slice(0, None, 40), pytest.param(slice(None), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_right_solutions_pass_in_the_sandbox(rows, part):
    rows = rows[part]
    verdicts = judged(rows, [row["reference"] for row in rows])
    assert [(row["problem_id"], v.feedback) for row, v in zip(rows, verdicts, strict=True) if v.score != 1.0] == []


def test_the_shown_examples_are_not_enough(rows):
    """A function that knows the two examples by heart fails on the hidden tests, and hears which."""
    programs = []
    for row in rows[:4]:
        name = row["function"]
        known = [
            (json.dumps(arguments), test["output"])
            for arguments, test in zip(CASES[name], json.loads(row["tests"]), strict=True)
        ]
        table = {key: json.loads(value) for key, value in known[:2]}
        programs.append(
            f"```python\nimport json\ndef {name}(*args):\n    return {table!r}.get(json.dumps(list(args)))\n```"
        )
    for verdict in judged(rows[:4], programs):
        assert verdict.score == 0.0
        assert verdict.kind == "tests"
        assert "expected" in verdict.feedback.lower()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"split": "dev"}, "has 'train' and 'test', not 'dev'"), ({"path": "x"}, "leave the path out")],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tasks.load("programs", **kwargs)
