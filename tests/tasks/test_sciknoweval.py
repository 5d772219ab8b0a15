"""SciKnowEval: the release's files and the hub's rows in one schema; bad rows named by file, line and mend."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from errata.tasks import load, verifier
from errata.tasks.rows import Row
from errata.tasks.sciknoweval import DOMAINS, _released_form, _splits, _wanted

FIXTURES = Path(__file__).parents[1] / "fixtures" / "sciknoweval"
DATA = Path(os.environ.get("ERRATA_DATA", Path(__file__).parents[3] / "shared" / "data")) / "sciknoweval"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the release's rows are not here (ERRATA_DATA)")


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def row(idx=0, **changes):
    fields = {
        "idx": idx,
        "answer": "B",
        "prompt": f"Which of {idx}?\n\nA: one\nB: two\nC: three\nD: four",
        "system": "S",
    }
    return {key: value for key, value in {**fields, **changes}.items() if value != "absent"}


@pytest.mark.parametrize("path", [FIXTURES, FIXTURES / "physics", FIXTURES / "physics" / "train.json"])
def test_rows_in_the_schema_of_tasks(path):
    rows = load("sciknoweval/physics", path=str(path), split="train")
    assert rows["problem_id"] == ["sciknoweval/physics/3", "sciknoweval/physics/0", "sciknoweval/physics/7"]
    assert rows["answer"] == ["B", "C", "A"]
    assert rows[0]["reference"] == "<answer>\nB\n</answer>"
    assert [m["role"] for m in rows[0]["prompt"]] == ["system", "user"]
    assert rows[0]["prompt"][1]["content"].startswith("A stone falls for 2 s")
    assert set(rows["task"]) == {"sciknoweval/physics"}
    assert rows[0]["options"] == ["10 m", "20 m", "40 m", "5 m"]
    # An option may go on over a line, and the question may have a line that looks like one.
    assert rows[2]["options"] == ["red is longer", "blue is longer", "both are equal", "it depends on\nthe lamp"]


def test_the_reference_is_a_right_answer():
    rows = load("sciknoweval/physics", path=str(FIXTURES), split="test")
    judged = verifier("sciknoweval/physics")(
        prompts=rows["prompt"], completions=rows["reference"], answer=rows["answer"], options=rows["options"]
    )
    assert [v.score for v in judged] == [1.0, 1.0]


@pytest.mark.parametrize("folder", ["material", "sciknoweval/material", "sciknoweval/materials"])
def test_the_releases_name_of_materials_is_known(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "test.jsonl").write_text(lines(row(4)))
    rows = load("sciknoweval/materials", path=str(tmp_path), split="test")
    assert rows["problem_id"] == ["sciknoweval/materials/4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines(row(0), row(1, answer="absent")), "line 2: no field 'answer'; the row has 'idx', 'prompt', 'system'"),
        (lines(row(0, prompt="absent")), "line 1: no field 'prompt'"),
        (lines(row(0, prompt=["x"])), "line 1: field 'prompt' must be text, not list"),
        (lines(row("absent")), "line 1: no field 'idx'"),
        (lines(row(0, answer="E")), "line 1: field 'answer' is 'E'; write the letter of an option, one of A, B, C, D"),
        (lines(row(0, prompt="Which?")), "line 1: field 'prompt' ends with no options"),
        (lines(row(0), '{"idx": 1,'), "line 2: broken JSON at column 11"),
        (lines(row(0), "[1]"), "line 2: a JSON list; write one object a line"),
        (lines(row(0), row(1), row(0)), "line 3: the problem_id 'sciknoweval/physics/0' was seen before"),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, message):
    (tmp_path / "test.json").write_text(text)
    with pytest.raises(ValueError, match=r"test\.json, line") as error:
        load("sciknoweval/physics", path=str(tmp_path), split="test")
    assert message in str(error.value)


def test_files_that_are_not_text_missing_or_empty(tmp_path):
    (tmp_path / "train.json").write_bytes(b'{"idx": "\xff"}\n')
    (tmp_path / "test.json").write_text("\n")
    with pytest.raises(ValueError, match="line 1: not UTF-8 text"):
        load("sciknoweval/physics", path=str(tmp_path), split="train")
    with pytest.raises(ValueError, match=r"test\.json: no usable rows$"):
        load("sciknoweval/physics", path=str(tmp_path), split="test")
    with pytest.raises(ValueError, match="path: no folder"):
        load("sciknoweval/physics", path=str(tmp_path / "nowhere"), split="test")
    with pytest.raises(
        ValueError, match=r"holds no rows of the split 'test'; looked for test.json, test.jsonl, biology/"
    ):
        load("sciknoweval/biology", path=str(FIXTURES), split="test")
    with pytest.raises(ValueError, match="split: sciknoweval/physics has 'train' and 'test', not 'dev'"):
        load("sciknoweval/physics", path=str(FIXTURES), split="dev")


def test_a_training_row_that_is_a_test_row_is_left_out_and_counted(tmp_path, caplog):
    same = row(0)["prompt"].replace("\n", " \n")
    (tmp_path / "train.json").write_text(lines(row(5), row(6, prompt=same)))
    (tmp_path / "test.json").write_text(lines("broken", row(0)))
    rows = load("sciknoweval/physics", path=str(tmp_path), split="train")
    assert rows["problem_id"] == ["sciknoweval/physics/5"]
    assert "left out 1 of 2 training rows whose question is in the test split; the first: " in caplog.text
    assert caplog.text.rstrip().endswith("train.json, line 2")


def test_a_row_that_leaks_does_not_hide_one_that_is_malformed(tmp_path):
    (tmp_path / "train.json").write_text(lines(row(0), row(1, answer="E")))
    (tmp_path / "test.json").write_text(lines(row(0)))
    with pytest.raises(ValueError, match=r"line 2: field 'answer' is 'E'"):
        load("sciknoweval/physics", path=str(tmp_path), split="train")


def test_not_strict_leaves_bad_rows_out_and_says_how_many(tmp_path, caplog):
    from errata.tasks import sciknoweval

    (tmp_path / "train.json").write_text(lines(row(0), "broken", row(0), row(1, answer="E"), row(2), row(9)))
    (tmp_path / "test.json").write_text(lines(row(9)))
    with caplog.at_level(logging.WARNING):
        rows = sciknoweval.load("sciknoweval/physics", str(tmp_path), "train", strict=False)
    assert rows["problem_id"] == ["sciknoweval/physics/0", "sciknoweval/physics/2"]
    assert "left out 3 of 5 rows; the first:" in caplog.text
    assert "left out 1 of 3 training rows whose question is in the test split" in caplog.text
    assert "line 2: broken JSON at column 1" in caplog.text
    (tmp_path / "train.json").write_text("broken\n")
    with pytest.raises(ValueError, match=r"no usable rows; the first problem: .*line 1: broken JSON"):
        sciknoweval.load("sciknoweval/physics", str(tmp_path), "train", strict=False)


def hub_row(index, domain="Physics", level="L3", labels="ABCD"):
    choices = {"label": list(labels), "text": [f"text {index}{label}" for label in labels]}
    fields = {
        "question": f"Question {index}?",
        "choices": choices,
        "answerKey": "C" if labels else "",
        "domain": domain,
    }
    return Row({**fields, "details": {"level": level}}, f"hub, row {index}")


def test_the_hubs_rows_get_the_releases_form_and_split():
    rows = [hub_row(0, "Biology"), hub_row(1, level="L2"), hub_row(2, labels=""), *(hub_row(i) for i in range(3, 23))]
    rows = [r for r in rows if _wanted(r, "Physics")]
    assert [r.where for r in rows] == [f"hub, row {i}" for i in range(3, 23)]
    assert _released_form(rows[0], 0).fields["prompt"] == (
        "Question 3?\n\nA: text 3A\nB: text 3B\nC: text 3C\nD: text 3D\nPlease reason step by step."
    )
    parts = _splits(rows, expected=20)
    train, test = parts["train"], parts["test"]
    numbers = [r.fields["idx"] for r in train] + [r.fields["idx"] for r in test]
    assert (len(train), len(test), sorted(numbers)) == (18, 2, list(range(20)))
    assert all(r.fields["prompt"].startswith(f"Question {r.fields['idx'] + 3}?") for r in train + test)


# The questions of datasets/sciknoweval/biology/test.json in the release (arXiv 2601.20802), which has both kinds of question.
BIOLOGY_TEST = [473, 132, 472, 46, 40, 232, 45, 428, 326, 159, 291, 235]


def biology_of_the_hub():
    """As many questions as the hub has: 300 with four options and 200 with two, and others that the release leaves out."""
    rows = []
    for i in range(500):
        labels = "AB" if i % 5 in (1, 3) else "ABCD"
        fields = dict(hub_row(i, "Biology", labels=labels).fields)
        rows.append({**fields, "type": f"mcq-{len(labels)}-choices", "answerKey": "B"})
        if i % 7 == 0:  # a statement, and a question of another level
            nothing = {"label": [], "text": []}
            rows.append({**fields, "type": "true_or_false", "choices": nothing, "answerKey": ""})
            rows.append({**rows[-2], "details": {"level": "L2"}})
    return rows


def test_biology_of_the_hub_has_both_kinds_in_the_releases_split(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **settings: biology_of_the_hub())
    train, test = (load("sciknoweval/biology", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (450, 50)
    assert test["problem_id"][:12] == [f"sciknoweval/biology/{i}" for i in BIOLOGY_TEST]
    assert not set(train["problem_id"]) & set(test["problem_id"])
    assert sorted(len(options) for options in [*train["options"], *test["options"]]) == [2] * 200 + [4] * 300
    with_two = next(row for row in test if len(row["options"]) == 2)
    assert "a question with two options" in with_two["prompt"][0]["content"]
    assert "the option you choose: A or B, and nothing else" in with_two["prompt"][0]["content"]


def test_a_question_of_the_hub_in_both_splits_is_left_out_of_training(monkeypatch, caplog):
    rows = biology_of_the_hub()
    fives = [row for row in rows if row["details"]["level"] == "L3" and row["choices"]["label"]]
    # Question 1 is in the training split, question 473 in the test split.
    fives[1] |= {name: fives[473][name] for name in ("question", "choices", "type")}
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **settings: rows)
    train = load("sciknoweval/biology", split="train")
    assert len(train) == 449
    assert "sciknoweval/biology/1" not in train["problem_id"]
    assert "sciknoweval/biology: left out 1 of 450 training rows whose question is in the test split" in caplog.text
    assert len(load("sciknoweval/biology", split="test")) == 50


def test_a_hub_with_other_columns_is_one_line(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **settings: [{"text": "?", "label": 1}])
    with pytest.raises(
        ValueError, match=r"sciknoweval/biology: the hub's set has no questions .* \(it has text, label\)"
    ):
        load("sciknoweval/biology", split="test")


def test_a_hub_of_another_size_is_reported(caplog):
    with caplog.at_level(logging.WARNING):
        _splits([hub_row(i) for i in range(10)], expected=800)
    assert "the hub has 10 such questions, the SDPO release had 800" in caplog.text


def test_without_a_network_one_line_says_what_to_do():
    code = "from errata.tasks import load; load('sciknoweval/physics')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "errata.tasks.rows.UnreachableError: sciknoweval/physics: could not fetch 'hicai-zju/SciKnowEval' from the hub ("
    )
    assert last.endswith("give a local copy with path=DIR, holding physics/train.json and physics/test.json")


@real
@pytest.mark.parametrize(
    ("domain", "split", "count"), [("physics", "train", 720), ("physics", "test", 80), ("chemistry", "test", 210)]
)
def test_the_releases_own_rows(domain, split, count):
    if not (DATA / domain / f"{split}.json").is_file():
        pytest.skip("this file is not here")
    rows = load(f"sciknoweval/{domain}", path=str(DATA), split=split)
    assert len(rows) == len(set(rows["problem_id"])) == count
    assert {len(options) for options in rows["options"]} == {4}
    judged = verifier(f"sciknoweval/{domain}")(
        prompts=rows["prompt"], completions=rows["reference"], answer=rows["answer"], options=rows["options"]
    )
    assert {v.score for v in judged} == {1.0}


@real
@pytest.mark.parametrize("domain", ["physics", "chemistry"])
def test_our_split_of_the_hub_is_the_releases(domain):
    file = DATA / domain / "test.json"
    if not file.is_file():
        pytest.skip("this file is not here")
    released = [json.loads(line)["idx"] for line in file.open()]
    count = DOMAINS[domain][1]
    ours = [r.fields["idx"] for r in _splits([hub_row(i) for i in range(count)], expected=count)["test"]]
    assert ours == released
