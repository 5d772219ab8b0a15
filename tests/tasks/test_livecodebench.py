"""LiveCodeBench's rows: public and compressed private tests, programs and functions, half the tests for training."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from errata.feedback import sandbox
from errata.tasks import load, verifier
from errata.tasks.livecodebench import decode_tests

FIXTURES = Path(__file__).parents[1] / "fixtures" / "livecodebench"


def test_rows_in_the_schema_of_tasks():
    rows = load("livecodebench/v6", path=str(FIXTURES), split="test")
    assert rows["problem_id"] == ["livecodebench/v6/own_a", "livecodebench/v6/own_b"]  # the third is too old
    assert (rows[0]["answer"], rows[0]["reference"], rows[0]["task"]) == ("", None, "livecodebench/v6")
    assert rows["function"] == ["", "weave"]
    assert "reads the input from standard input" in rows[0]["prompt"][0]["content"]
    assert "```python\nclass Solution:\n    def weave(self, left" in rows[1]["prompt"][0]["content"]
    assert json.loads(rows[0]["tests"])[2] == {"input": "4\n-3 0 1 9\n", "output": "8\n"}


def test_training_sees_every_other_test_of_the_same_problems():
    train = load("livecodebench/v6", path=str(FIXTURES / "test6.jsonl"), split="train")
    test = load("livecodebench/v6", path=str(FIXTURES), split="test")
    assert train["problem_id"] == test["problem_id"]
    for some, every in zip(train["tests"], test["tests"], strict=True):
        assert json.loads(some) == json.loads(every)[::2]


def test_a_program_that_only_passes_the_training_tests():
    cheat = "```python\nn = int(input())\nprint(3 if n == 3 else 8)\n```"
    judge = verifier("livecodebench/v6", unsafe_local=not sandbox.isolation())
    scores = []
    for split in ("train", "test"):
        row = load("livecodebench/v6", path=str(FIXTURES), split=split)[0]
        scores += judge(completions=[cheat], tests=[row["tests"]], function=[row["function"]])
    assert [v.score for v in scores] == [1.0, 0.0]


def compressed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def test_both_forms_of_tests():
    tests = [{"input": "1", "output": "2", "testtype": "stdin"}]
    assert decode_tests(json.dumps(tests)) == tests
    assert decode_tests(compressed(json.dumps(tests))) == tests


class Harmful:
    def __reduce__(self):
        return (os.system, ("echo harm",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oops", "neither JSON nor the benchmark's compressed form"),
        ("{}", "must be a list of tests, not dict"),
        (compressed(Harmful()), "it names posix.system"),
        (compressed([1]), "neither JSON nor"),
    ],
)
def test_tests_that_cannot_be_read(text, message, capfd):
    with pytest.raises(ValueError, match=r"JSON|list") as error:
        decode_tests(text)
    assert message in str(error.value)
    assert "harm" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_id": None}, "line 1: no field 'question_id'"),
        ({"private_test_cases": "oops"}, "line 1: field 'private_test_cases': neither JSON nor"),
        ({"public_test_cases": '[{"input": "1"}]'}, "test 1 needs the texts 'input', 'output' and 'testtype'"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "the tests are of kind none, the function is ''"),
        ({"metadata": '{"func_name": "f"}'}, "the tests are of kind stdin, the function is 'f'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, changes, message):
    row = json.loads((FIXTURES / "test6.jsonl").read_text().splitlines()[0])
    (tmp_path / "test6.jsonl").write_text(json.dumps({**row, **changes}))
    with pytest.raises(ValueError, match=r"test6\.jsonl, line 1") as error:
        load("livecodebench/v6", path=str(tmp_path), split="test")
    assert message in str(error.value)


def test_a_wrong_split():
    with pytest.raises(ValueError, match="split: livecodebench/v6 has 'train' and 'test', not 'dev'"):
        load("livecodebench/v6", path=str(FIXTURES), split="dev")
