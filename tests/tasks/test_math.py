"""Mathematics: local files, the hub's sets by name, references where there are some."""

import importlib.util
import json
from pathlib import Path

import pytest

from errata.tasks import load, verifier
from errata.tasks.math import SETS, _on_hub

FIXTURES = Path(__file__).parents[1] / "fixtures" / "math"


def test_rows_in_the_schema_of_tasks():
    rows = load("math", path=str(FIXTURES), split="train")
    assert rows["answer"] == ["5050", r"\frac{1}{3}", "9"]
    # Without an id of its own a problem is known by its text: sha256("How many diagonals has a hexagon?").
    assert rows["problem_id"] == ["math/math/sum", "math/math/third", "math/math/5b7b2d65644b"]
    assert rows[0]["reference"].endswith(r"each make $\boxed{5050}$.")
    assert rows[2]["reference"] is None
    assert rows[2]["prompt"] == [
        {
            "role": "user",
            "content": "How many diagonals has a hexagon?\n\n"
            "Reason step by step, and put the final answer into \\boxed{}.",
        }
    ]


def test_one_path_to_train_on_and_one_to_test_on(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"problem": "1+1?", "answer": 2}))
    path = f"{FIXTURES}, {tmp_path / 'mine.jsonl'}"
    assert len(load("math", path=path, split="train")) == 3
    assert load("math", path=path, split="test")["answer"] == ["2"]
    assert load("math", path=str(FIXTURES), split="test")["reference"] == [None, None]


@pytest.mark.skipif(importlib.util.find_spec("sympy") is None, reason="SymPy is not installed")
def test_the_references_are_right():
    rows = load("math", path=str(FIXTURES), split="train").select(range(2))
    judged = verifier("math", workers=1)(completions=rows["reference"], answer=rows["answer"])
    assert [v.score for v in judged] == [1.0, 1.0]


def test_the_sets_of_the_hub():
    assert _on_hub("aime-2025", "test") == ("MathArena/aime_2025", "train", "test")
    assert _on_hub("someone/their-set", "train") == ("someone/their-set", "train", "train")
    assert {name for name, found in SETS.items() if found.split == "train"} == {"openthoughts", "deepscaler"}
    with pytest.raises(
        ValueError, match="the set 'aime-2025' is for test, not for train; path='openthoughts,aime-2025'"
    ):
        load("math", path="aime-2025", split="train")
    with pytest.raises(
        ValueError, match="path: no file, folder or set 'aime25'; the sets are openthoughts, deepscaler"
    ):
        load("math", path="aime25", split="test")
    with pytest.raises(ValueError, match=r"path: no file, folder or set 'nowhere/rows\.jsonl'"):
        load("math", path="nowhere/rows.jsonl", split="test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "1"}, "line 1: no field 'problem' or 'question'; the row has 'answer'"),
        ({"problem": "?"}, "line 1: no field 'answer' or 'Answer' or 'final_answer'"),
        ({"problem": "?", "answer": ["1"]}, "line 1: field 'answer' must be text, not list"),
        ({"problem": "?", "answer": "1", "solution": 7}, "line 1: field 'solution' must be text, not int"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1") as error:
        load("math", path=str(tmp_path), split="test")
    assert message in str(error.value)
    with pytest.raises(ValueError, match="split: math has 'train' and 'test', not 'dev'"):
        load("math", path=str(tmp_path), split="dev")
