"""Tool use: the release's files in the schema of tasks."""

import json
import os
from pathlib import Path

import pytest

from errata.tasks import load, verifier

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tooluse"
DATA = Path(os.environ.get("ERRATA_DATA", Path(__file__).parents[3] / "shared" / "data")) / "tooluse"


@pytest.mark.parametrize("path", [FIXTURES, FIXTURES.parent])
def test_rows_in_the_schema_of_tasks(path):
    rows = load("tooluse", path=str(path), split="test")
    assert rows["problem_id"] == ["tooluse/3", "tooluse/4"]
    assert [[m["role"] for m in prompt] for prompt in rows["prompt"]] == [["user"], ["system", "user"]]
    assert rows[0]["reference"] == 'Action: findBooks\nAction Input: {"words": "owls"}'
    assert json.loads(rows[0]["answer"])[1]["Action"] == "[Optional]openingHours"
    assert set(rows["task"]) == {"tooluse"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_reference_is_right_and_another_rows_is_wrong(split):
    rows = load("tooluse", path=str(FIXTURES), split=split)
    references = list(rows["reference"])
    judge = verifier("tooluse")
    right = judge(prompts=rows["prompt"], completions=references, answer=rows["answer"])
    assert {v.score for v in right} == {1.0}
    assert all(v.info["strict_format"] for v in right)
    others = references[1:] + references[:1]
    wrong = judge(prompts=rows["prompt"], completions=others, answer=rows["answer"])
    assert {v.score for v in wrong} == {0.0}
    assert all(v.feedback for v in wrong)


def test_a_missing_path_a_wrong_split_and_a_bad_answer(tmp_path):
    with pytest.raises(ValueError, match=r"path: tooluse needs path=DIR with train.json and test.json"):
        load("tooluse")
    with pytest.raises(ValueError, match="split: tooluse has 'train' and 'test', not 'all'"):
        load("tooluse", path=str(FIXTURES), split="all")
    fields = {"idx": 1, "prompt": "?", "answer": '[{"Action": "a", "Action_Input": "{oops"}]'}
    (tmp_path / "test.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"test.json, line 1: field answer: call 1: 'Action_Input' is not valid JSON"):
        load("tooluse", path=str(tmp_path), split="test")


@pytest.mark.skipif(not (DATA / "test.json").is_file(), reason="the release's rows are not here (ERRATA_DATA)")
def test_the_releases_own_rows():
    rows = load("tooluse", path=str(DATA), split="test")
    assert len(rows) == len(set(rows["problem_id"])) == 68
    judged = verifier("tooluse")(prompts=rows["prompt"], completions=rows["reference"], answer=rows["answer"])
    assert {(v.score, v.info["same_calls"], v.info["strict_format"]) for v in judged} == {(1.0, True, True)}
