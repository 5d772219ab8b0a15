"""``errata init`` and ``errata tasks RECIPE --check``: from nothing to checked rows, and what a check finds."""

import json

import pytest

from errata.cli import main


@pytest.fixture
def started(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == ("next: errata tasks my.yaml --check, then errata train my.yaml")
    return tmp_path


def checked(capsys, name="my.yaml"):
    status = main(["tasks", name, "--check"])
    return status, capsys.readouterr()


def test_what_init_writes_passes_its_check(started, capsys):
    status, said = checked(capsys)
    assert status == 0
    assert "rows: 5, columns answer, reference, prompt, problem_id; 5 have a reference" in said.out
    assert "right answers: 5 of 5 reach the threshold of 1" in said.out
    assert "wrong answers: 0 of 10 reach the threshold; 10 get feedback" in said.out
    assert "[user]\n7a+3=?\nsolved:7a+3=0\n" in said.out
    assert "student's prompts       11       11\n" in said.out
    assert "nothing is wrong that can be seen before training" in said.out


def test_init_writes_over_nothing(started, capsys):
    (started / "judge.py").write_text("mine")
    assert main(["init"]) == 2
    assert "init: . has a my.yaml already; name another folder, or remove it" in capsys.readouterr().err
    assert main(["init", "other"]) == 0
    assert (started / "judge.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("judge.py", "found == right", "True", "the verifier gives 1 to '2a+9=1b-4=7' for "),
        ("judge.py", "found == right", "found == right + '!'", "the verifier gives 0 (correction: 0 not 0) to "),
        ("judge.py", "text = completion", "text = 1 / 0; completion", "the verifier fails on "),
        (
            "my.yaml",
            "max_completion_length: 16",
            "max_completion_length: 8",
            "3 of 5 references are longer than max_comp",
        ),
    ],
)
def test_what_is_wrong_is_named(started, capsys, name, old, new, problem):
    text = (started / name).read_text()
    assert old in text
    (started / name).write_text(text.replace(old, new))
    status, said = checked(capsys)
    assert status == 1
    assert f"problem: {problem}" in said.out


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("rows.jsonl", '"answer": "7"', '"answer": 7', "rows.jsonl: column 'answer' has values of different types"),
        ("my.yaml", "prompt: question", "prompt: problem", "columns: prompt: the rows have no column 'problem'"),
        ("judge.py", "answer, **", "solutions, **", "verifier: judge needs the column 'solutions'"),
        ("my.yaml", "model: house", "model: ./nowhere", "model: no directory './nowhere'"),
    ],
)
def test_what_cannot_be_used_is_one_line(started, capsys, name, old, new, message):
    text = (started / name).read_text()
    (started / name).write_text(text.replace(old, new, 1))
    status, said = checked(capsys)
    assert status == 2
    assert said.err.startswith("errata: ")
    assert message in said.err


def test_rows_and_contexts_of_a_recipe_are_shown(started, capsys):
    assert main(["tasks", "my.yaml", "--rows", "1"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["reference"] == "7a+3=0"
    assert main(["tasks", "my.yaml", "--show-context"]) == 0
    shown = capsys.readouterr().out
    assert "(train), method distil: teacher shown sibling, else feedback, else reference" in shown
    assert "score 0, correction: 7 not 0" in shown
    assert main(["tasks", "math", "--check"]) == 2
    assert "--check: checks a recipe; name one, such as my.yaml" in capsys.readouterr().err


def test_eval_takes_a_recipes_rows(started, capsys):
    assert main(["eval", "house", "--task", "my.yaml", "--k", "2"]) == 2
    assert "is one file, without a split 'test'" in capsys.readouterr().err
    assert main(["eval", "house", "--task", "my.yaml", "--k", "2", "--split", "train"]) == 0
    said = capsys.readouterr().out
    found = json.loads(said[said.index("{") :])  # DeepSpeed, where it is installed, prints a line before
    assert (found["dataset"], found["n_problems"], found["k"]) == ("rows.jsonl", 5, 2)
    assert main(["eval", "house", "--task", "my.yaml", "--k", "2", "--split", "train", "--against", "house"]) == 0
    said = capsys.readouterr().out
    compared = json.loads(said[said.index("{") :])
    # The same policy with the same seed: no difference, and no reason to believe in one.
    assert (compared["paired"]["difference"], compared["paired"]["p_value"]) == (0.0, 1.0)
    assert compared["against"]["avg@2"] == compared["avg@2"] == found["avg@2"]
