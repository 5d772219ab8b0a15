"""Every kind of bad row, in every task that reads files: named by file, line and mend, or left out and counted."""

import json
import logging

import pytest

from errata.tasks import load
from errata.tasks.rows import BadRowError


def choice(idx):
    return {"idx": idx, "answer": "B", "prompt": f"Which of {idx}?\n\nA: one\nB: two", "system": "S"}


def call(idx):
    return {
        "idx": idx,
        "prompt": f"Find {idx}.",
        "answer": '[{"Action": "find", "Action_Input": "{}"}]',
        "system": None,
    }


def sum_(idx):
    return {"id": str(idx), "problem": f"What is {idx}+1?", "answer": str(idx + 1), "solution": "Count on."}


def program(idx):
    test = [{"input": str(idx), "output": "1", "testtype": "stdin"}]
    tests = {"public_test_cases": json.dumps(test), "private_test_cases": "[]"}
    return {"question_id": str(idx), "question_content": f"Print {idx}.", "metadata": "{}", **tests}


# task: its file for training and for testing, a good row of a number, fields that must be there, fields that must be text
TASKS = {
    "sciknoweval/physics": (
        "train.json",
        "test.json",
        choice,
        ("idx", "prompt", "answer"),
        ("prompt", "answer", "system"),
    ),
    "tooluse": ("train.json", "test.json", call, ("idx", "prompt", "answer"), ("prompt", "answer", "system")),
    "math": ("train.json", "test.json", sum_, ("problem", "answer"), ("problem", "answer", "solution")),
    "livecodebench/v6": (
        "test6.jsonl",
        "test6.jsonl",
        program,
        ("question_id", "question_content", "public_test_cases", "private_test_cases"),
        ("question_content", "public_test_cases"),
    ),
}
OTHERS = {
    ("sciknoweval/physics", "unknown option letter"): (
        {"answer": "C"},
        "field 'answer' is 'C'; write the letter of an option",
    ),
    ("sciknoweval/physics", "no options"): (
        {"prompt": "Which?"},
        "field 'prompt' ends with no options; write each on a line",
    ),
    ("tooluse", "no calls"): ({"answer": "{"}, "field answer: "),
    ("livecodebench/v6", "broken metadata"): ({"metadata": "{"}, "field 'metadata': broken JSON at column 2"),
    ("livecodebench/v6", "metadata of another type"): ({"metadata": "[]"}, "field 'metadata' must be a JSON object"),
    ("livecodebench/v6", "a function of another type"): ({"metadata": '{"func_name": 3}'}, "its 'func_name' a text"),
    ("livecodebench/v6", "tests that are none"): (
        {"private_test_cases": "x"},
        "field 'private_test_cases': neither JSON",
    ),
}


def bad_rows():
    for task, (_, _, good, needed, texts) in TASKS.items():
        for field in needed:
            without = {k: v for k, v in good(1).items() if k != field}
            yield pytest.param(task, without, f"no field '{field}'", id=f"{task}: {field} is missing")
        for field in texts:
            wrong = {**good(1), field: ["x"]}
            yield pytest.param(task, wrong, f"field '{field}' must be text, not list", id=f"{task}: {field} is a list")
        yield pytest.param(task, '{"idx": 1,', "broken JSON at column", id=f"{task}: broken JSON")
        yield pytest.param(task, "[]", "a JSON list; write one object a line", id=f"{task}: no object")
        yield pytest.param(task, good(0), "was seen before; give every row its own", id=f"{task}: a duplicate id")
    for (task, what), (changes, message) in OTHERS.items():
        yield pytest.param(task, {**TASKS[task][2](1), **changes}, message, id=f"{task}: {what}")


def write(file, *rows):
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.mark.parametrize(("task", "bad", "message"), bad_rows())
def test_a_bad_row_is_named_or_left_out_and_counted(tmp_path, caplog, task, bad, message):
    good = TASKS[task][2]
    file = tmp_path / TASKS[task][1]
    write(file, good(0), bad, good(2))
    # One field has two names: what is missing is then named with both.
    message = message.replace("no field 'problem'", "no field 'problem' or 'question'")
    message = message.replace("no field 'answer'", "no field 'answer' or 'Answer'") if task == "math" else message
    with pytest.raises(BadRowError) as error:
        load(task, path=str(tmp_path), split="test")
    said = str(error.value)
    assert said.startswith(f"{file}, line 2: ")
    assert message in said
    assert said.endswith("(strict=False leaves such rows out)")
    assert "\n" not in said
    with caplog.at_level(logging.WARNING):
        rows = load(task, path=str(tmp_path), split="test", strict=False)
    assert len(rows) == 2
    (record,) = caplog.records
    assert f": left out 1 of 3 rows; the first: {file}, line 2: " in record.getMessage()
    assert message in record.getMessage()


@pytest.mark.parametrize("task", ["sciknoweval/physics", "tooluse", "math"])
def test_a_test_row_that_is_also_in_train(tmp_path, caplog, task):
    train, test, good, _, _ = TASKS[task]
    key = "id" if task == "math" else "idx"
    write(tmp_path / train, good(0), {**good(5), key: "7"})
    write(tmp_path / test, good(5))
    for strict in (True, False):
        caplog.clear()
        assert len(load(task, path=str(tmp_path), split="train", strict=strict)) == 1
        assert "train.json: left out 1 of 2 training rows" in caplog.text.replace(f"{tmp_path}: ", "train.json: ")
    write(tmp_path / train, good(5))
    with pytest.raises(ValueError, match="every training question is in the test split; give other rows"):
        load(task, path=str(tmp_path), split="train")
    assert len(load(task, path=str(tmp_path), split="test")) == 1


def test_a_pair_of_files_of_mathematics_is_checked_too(tmp_path, caplog):
    write(tmp_path / "mine.jsonl", sum_(0), sum_(1))
    write(tmp_path / "held.jsonl", sum_(1))
    pair = f"{tmp_path / 'mine.jsonl'}, {tmp_path / 'held.jsonl'}"
    assert load("math", path=pair, split="train")["answer"] == ["1"]
    assert "left out 1 of 2 training rows whose question is in the test split; the first: " in caplog.text
    assert caplog.text.rstrip().endswith("mine.jsonl, line 2")
    assert len(load("math", path=pair, split="test")) == 1


def test_a_world_that_is_made_has_no_bad_rows():
    assert load("rulebook/new-rule", strict=False)["problem_id"] == load("rulebook/new-rule")["problem_id"]


@pytest.mark.parametrize("task", TASKS)
def test_a_file_of_bad_rows_only(tmp_path, task):
    write(tmp_path / TASKS[task][1], "broken")
    with pytest.raises(ValueError, match=r"no usable rows; the first problem: .*line 1: broken JSON at column 1"):
        load(task, path=str(tmp_path), split="test", strict=False)
