"""``errata tasks``: what student and teacher see for a row, and rows that are left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from errata.cli import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
PHYSICS = ["tasks", "sciknoweval/physics", "--task_path", str(FIXTURES / "sciknoweval")]
RULES = [
    "tasks",
    "rulebook/new-rule",
    "--show-context",
    "--context_template",
    "house",
    "--task_args",
    "{feedback: trace}",
]


def shown(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def parts(text):
    """Heading to text."""
    first, *rest = text.split("\n--- ")
    return {
        "": first.strip(),
        **{title: body.strip("\n") for title, body in (part.split(" ---\n", 1) for part in rest)},
    }


def test_every_source_of_the_method_with_the_tasks_own_verdict(capsys):
    found = parts(shown(capsys, *RULES))
    assert (
        found[""]
        == "rulebook/new-rule/train/0 (train), method distil: teacher shown sibling, else feedback, else reference"
    )
    assert found["What the student sees"] == "[user]\n4a-3b+9c-9d+6=?"
    attempt, verdict = found["A failed attempt, made up, and its feedback"].split("\n")
    assert attempt == "8a-2=6b+5=1c+9=0d*9=3"  # the next row's solution
    trace = "4 not 8;8a-3=5 not a-2=6;6b+9=5 not b+5=1;1c-9=2 not c+9=0;0d+6=6 not d*9=3"
    assert verdict == f"score 0, trace: {trace}"
    solved = "[user]\n4a-3b+9c-9d+6=?\nsolved:4a-3=1b+9=0c-9=1d+6=7"
    assert found["What the teacher sees if a sibling succeeded (sibling)"] == (
        f"rollout 1 of its group succeeded (reward 1); holds the answer\n{solved}"
    )
    assert found["What the teacher sees if the attempt failed and there is feedback (feedback)"] == (
        f"trace on its own attempt; does not hold the answer\n[user]\n4a-3b+9c-9d+6=?\ntried:{attempt}\ntold:{trace}"
    )
    assert found["What the teacher sees if the data set has a reference (reference)"] == (
        f"the data set's reference; holds the answer\n{solved}"
    )


def test_the_methods_settings_show(capsys):
    args = "{demonstrations: 2, history: 1, with_feedback: true}"
    found = parts(shown(capsys, *RULES, "--method", "drift", "--method_args", args))
    assert [title.rpartition("(")[2] for title in found if "teacher sees" in title] == [
        "sibling)",
        "buffer)",
        "feedback)",
    ]
    for source in ("a sibling succeeded (sibling)", "the success buffer holds a solution (buffer)"):
        lines = found[f"What the teacher sees if {source}"].splitlines()
        assert lines[3:5] == ["solved:4a-3=1b+9=0c-9=1d+6=7", "solved:[successful attempt 2]"]
        assert [line[:6] for line in lines[5:]] == ["tried:", "told:4", "tried:", "told:4"]


def test_messages_that_stay_are_not_printed_again(capsys):
    found = parts(shown(capsys, *PHYSICS, "--show-context"))
    assert found["What the student sees"].startswith("[system]\n")
    told = found["What the teacher sees if the attempt failed and there is feedback (feedback)"]
    assert told.splitlines()[1:3] == ["[system] as above", "[user]"]
    assert "You chose " in told


def test_a_method_without_a_teacher_and_a_row_without_a_reference(capsys):
    found = parts(shown(capsys, *RULES, "--method", "grpo"))
    assert list(found) == ["", "What the student sees"]
    assert found[""].endswith("no teacher")
    pytest.importorskip("sympy")
    math = ["tasks", "math", "--task_path", str(FIXTURES / "math"), "--show-context", "--rows", "3", "--method", "opsd"]
    last = parts(shown(capsys, *math).split("math/math/5b7b2d65644b")[1])
    title = "What the teacher sees if the data set has a reference (reference)"
    assert last[title] == "Nothing: this row has no reference that could stand for a solution here."


def test_programs_are_judged_where_no_row_has_a_solution(capsys):
    arguments = ["tasks", "livecodebench/v6", "--task_path", str(FIXTURES / "livecodebench"), "--show-context"]
    found = parts(shown(capsys, *arguments, "--task_args", "{unsafe_local: true}"))
    assert "score 0, tests: Test " in found["A failed attempt, made up, and its feedback"]
    told = found["What the teacher sees if the attempt failed and there is feedback (feedback)"]
    assert "The following is feedback from your unsuccessful earlier attempt:\n\nTest " in told
    sibling = found["What the teacher sees if a sibling succeeded (sibling)"]
    assert sibling == "Nothing: this row has no reference that could stand for a solution here."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "distill"], "did you mean 'distil'"),
        (["--method_args", "[1]"], "method_args: must be a mapping"),
        (["--method_args", "{histor: 1}"], "did you mean 'history'"),
        (["--task_args", "{feedback: [}"], "task_args: not YAML"),
        (["--context_template", "sdop"], "context_template: 'sdop' is neither a preset"),
        (
            ["--context_template", "{{ prompt }}", "--method_args", "{history: 1}"],
            "has no place for the earlier attempts",
        ),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert main([*RULES, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("errata: ")
    assert "\n" not in error


def test_piped_output_is_not_wrapped_nor_styled():
    command = [sys.executable, "-m", "errata", *PHYSICS, "--show-context"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "40"})
    assert max(map(len, found.stdout.splitlines())) > 80
    assert "\x1b" not in found.stdout
    assert found.stderr == ""


def test_bad_rows_are_left_out_on_request_and_said_in_one_line(tmp_path, capsys):
    row = json.loads((FIXTURES / "sciknoweval" / "physics" / "train.json").read_text().splitlines()[0])
    lines = [json.dumps({**row, "idx": 1}), "{broken", json.dumps({**row, "idx": 2, "answer": "Z"})]
    (tmp_path / "train.json").write_text("\n".join(lines))
    arguments = ["tasks", "sciknoweval/physics", "--task_path", str(tmp_path)]
    assert main(arguments) == 2
    assert "train.json, line 2: broken JSON at column 2" in capsys.readouterr().err
    done = subprocess.run(
        [sys.executable, "-m", "errata", *arguments, "--strict", "false"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("sciknoweval/physics (train): 1 rows")
    (said,) = done.stderr.splitlines()
    assert said.startswith(
        f"{tmp_path}/train.json: left out 2 of 3 rows; the first: {tmp_path}/train.json, line 2: broken"
    )
    with pytest.raises(SystemExit):
        main([*arguments, "--strict", "perhaps"])
    assert "'perhaps' is neither true nor false" in capsys.readouterr().err
