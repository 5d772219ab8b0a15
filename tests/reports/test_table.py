"""The closing tables, read as a user reads them: rendered text."""

import io

import pytest
from rich.console import Console

from errata.reports.table import before_after, prompt_text, rollout_samples, shortened, visible


def shown(renderable, *, terminal=False, width=100):
    out = io.StringIO()
    colours = "truecolor" if terminal else None
    Console(file=out, width=width, force_terminal=terminal, color_system=colours).print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().split("\n"))


FIRST = {
    "step": 0, "task": "rulebook/new-rule", "split": "test", "n_problems": 256, "k": 8,
    "avg@8": 0.05, "avg@8_low": 0.031, "avg@8_high": 0.0724, "pass@8": 0.2, "length": 18.25,
}  # fmt: skip
LAST = {
    **FIRST,
    "step": 120,
    "avg@8": 0.8,
    "avg@8_low": 0.75,
    "avg@8_high": 0.85,
    "pass@8": 0.1,
    "teacher_accuracy": 0.9,
}


def test_before_and_after():
    lines = [line for line in shown(before_after(FIRST, LAST)).splitlines() if line]
    assert lines[0] == "rulebook/new-rule test, 256 problems"
    cells = {line[:20].strip(): line[20:].split() for line in lines[3:]}
    assert lines[1].split() == ["step", "0", "step", "120", "change"]
    assert cells["avg@8"] == ["5.0", "%", "[3.1,", "7.2]", "80.0", "%", "[75.0,", "85.0]", "+75.0"]
    assert cells["pass@8"] == ["20.0", "%", "10.0", "%", "-10.0"]
    assert cells["teacher accuracy"] == ["–", "90.0", "%", "–"]
    assert cells["length"] == ["18.2", "18.2", "+0.0"]
    assert "maj@8" not in cells


def test_colours_only_on_a_terminal():
    assert "\x1b[" not in shown(before_after(FIRST, LAST))
    on_terminal = shown(before_after(FIRST, LAST), terminal=True)
    assert "\x1b[32m +75.0" in on_terminal
    assert "\x1b[31m -10.0" in on_terminal


def test_rollouts_say_what_was_asked_answered_and_said():
    rows = [
        {
            "problem_id": "rulebook/new-rule/test/3", "prompt": [{"role": "user", "content": "7+3*4=?"}],
            "completion": "7+3=0;0*4=0;=0", "reward": 0.0, "kind": "trace", "feedback": "2:0*4=3 not 0",
            "context": {"kind": "sibling", "why": "rollout 3 of its group"},
        },
        {"problem_id": "p", "prompt": "2+2", "completion": "4", "reward": 1.0, "kind": "", "feedback": ""},
        {"problem_id": "q", "prompt": "2+2", "completion": "", "reward": None},
    ]  # fmt: skip
    blocks = shown(rollout_samples(rows)).split("\n\n")
    assert [line.split(maxsplit=1) for line in blocks[0].splitlines()] == [
        ["problem", "rulebook/new-rule/test/3"], ["prompt", "7+3*4=?"], ["attempt", "7+3=0;0*4=0;=0"],
        ["verdict", "reward 0"], ["trace", "2:0*4=3 not 0"], ["teacher", "sibling: rollout 3 of its group"],
    ]  # fmt: skip
    assert [line.split(maxsplit=1)[1:] for line in blocks[1].splitlines()] == [["p"], ["2+2"], ["4"], ["reward 1"]]
    assert "not judged" in blocks[2]
    assert shown(rollout_samples([])).strip() == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_model_wrote_is_text(terminal):
    text = "[red]no markup[/red] [/] :smile: \x1b[2J\x07 \u202e ü\nnext"
    out = shown(
        rollout_samples([{"problem_id": "[b]", "prompt": text, "completion": text, "reward": 0.5}]), terminal=terminal
    )
    assert out.count("[red]no markup[/red] [/] :smile: \\x1b[2J\\x07 \\u202e ü") == 2
    assert "\x1b[2J" not in out
    assert "\x07" not in out


@pytest.mark.parametrize(("threshold", "style"), [(0.5, "bold green"), (1.0, "bold red")])
def test_partial_credit_is_coloured_by_the_threshold(threshold, style):
    row = {"problem_id": "p", "prompt": "?", "completion": "x", "reward": 0.5}
    (grid, _) = rollout_samples([row], threshold=threshold).renderables
    verdict = list(grid.columns[1].cells)[3]
    assert (verdict.plain, verdict.style) == ("reward 0.5", style)


def test_long_texts_lose_their_middle():
    assert shortened("a" * 600) == "a" * 600
    assert shortened("a" * 300 + "b" * 1000 + "c" * 300) == "a" * 300 + " [... 1,000 characters ...] " + "c" * 300
    assert visible("a\tb\nc\x00") == "a\tb\nc\\x00"


def test_long_words_are_folded_not_cut():
    word = "x" * 250
    out = shown(rollout_samples([{"problem_id": "p", "prompt": "?", "completion": word, "reward": 1}]), width=80)
    assert out.count("x") == 250


def test_prompts_of_all_shapes():
    assert prompt_text("plain") == "plain"
    assert prompt_text([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]) == "u"
    parts = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    assert prompt_text([{"role": "user", "content": parts}]) == "[image]what is it?"
    assert prompt_text([]) == ""
    assert prompt_text([{"role": "assistant", "content": None}]) == ""
