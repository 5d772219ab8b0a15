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
    assert {name for name, found in SETS.items() if found.split == "train"} == {
        "openthoughts",
        "deepscaler",
        "pope-hard",
        "omnimath",
    }
    assert _on_hub("pope-hard", "train") == ("CMU-AIRe/POPE-HARD-w-oracle-solution", "train", "train")
    assert _on_hub("omnimath", "train") == ("KbsdJames/Omni-MATH", "test", "train")
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


HUB = {
    "CMU-AIRe/POPE-HARD-w-oracle-solution": [
        {"problem": "What is 1+1?", "answer": "2", "oracle_solution": "Count on."},
        {"problem": "What is 3+3?", "answer": "6", "oracle_solution": "Double it."},
    ],
    "KbsdJames/Omni-MATH": [{"problem": "What is 2+2?", "answer": "4", "solution": "Double it.", "difficulty": 6.5}],
    "MathArena/aime_2025": [{"problem": "What is  3+3?", "answer": 6, "problem_idx": 1}],
    "math-ai/minervamath": [{"question": "What is 5+5?"}],
}


@pytest.fixture
def hub(monkeypatch):
    def load_dataset(hub_id, **settings):
        if hub_id not in HUB:
            raise OSError(f"Couldn't reach {hub_id!r} on the Hub\nwith a long explanation")
        return HUB[hub_id]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)


def test_sets_of_the_hub_joined_and_compared_with_the_test_set(hub, caplog):
    rows = load("math", path="pope-hard+omnimath,aime-2025", split="train")
    assert rows["answer"] == ["2", "4"]
    assert rows["reference"] == ["Count on.", "Double it."]
    assert [name.rsplit("/", 1)[0] for name in rows["problem_id"]] == ["math/pope-hard", "math/omnimath"]
    assert "left out 1 of 3 training rows whose question is in the test split" in caplog.text
    assert "no solution" not in caplog.text
    assert load("math", path="pope-hard+omnimath,aime-2025", split="test")["problem_id"] == ["math/aime-2025/1"]


def test_missing_solutions_are_counted(tmp_path, caplog):
    rows = [{"problem": f"{n}?", "answer": n, **({"solution": "So."} if n == 0 else {})} for n in range(3)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load("math", path=str(tmp_path / "mine.jsonl"), split="train")
    assert "math: 2 of 3 problems of" in caplog.text
    assert "have no solution, so no reference to show a teacher" in caplog.text


def test_a_test_set_out_of_reach_is_told_and_training_goes_on(hub, tmp_path, caplog):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"problem": "1+1?", "answer": 2, "solution": "So."}))
    assert len(load("math", path=f"{tmp_path / 'mine.jsonl'},hmmt-2025", split="train")) == 1
    assert "the training problems were not compared with those of hmmt-2025: math: could not fetch" in caplog.text


def command(*words, capsys):
    from errata.cli import main

    status = main(["tasks", "math", *words])
    return status, capsys.readouterr().err


def test_the_hubs_failures_are_one_line_on_the_command_line(hub, monkeypatch, capsys):
    status, said = command("--task_path", "hmmt-2025", "--split", "test", capsys=capsys)
    assert status == 2
    assert said == (
        "errata: math: could not fetch 'MathArena/hmmt_feb_2025' from the hub (OSError: Couldn't reach "
        "'MathArena/hmmt_feb_2025' on the Hub); give a local copy with path=DIR, holding test.json with the fields problem, "
        "answer and solution\n"
    )
    status, said = command("--task_path", "minerva", "--split", "test", capsys=capsys)
    assert status == 2
    assert said.startswith(
        "errata: math-ai/minervamath, row 0: no field 'answer' or 'Answer' or 'final_answer'; the row has 'q"
    )
    assert said.count("\n") == 1

    def gated(hub_id, **settings):
        raise type("GatedRepoError", (OSError,), {})("401 Client Error. Access to it is restricted.")

    monkeypatch.setattr("datasets.load_dataset", gated)
    status, said = command("--task_path", "owner/gated-set", "--split", "train", capsys=capsys)
    assert status == 2
    assert "accept its terms on its page and log in with `hf auth login`, or give a local copy" in said
    assert said.count("\n") == 1
