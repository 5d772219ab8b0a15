"""Corrections by an expert: a column, a program or a person."""

import io
import sys

import pytest

from errata.feedback import judge
from errata.feedback.correction import ask_person, with_correction
from errata.records import Rollout, Verdict


def exact(completions, answer, **_):
    return [
        Verdict(1.0) if c == a else Verdict(0.0, "Not equal.", kind="trace")
        for c, a in zip(completions, answer, strict=True)
    ]


def plain(completions, answer, **_):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


COLUMNS = {"answer": ["4", "6", "9"], "correction": ["2+2 is 4.", "3+3 is 6.", ""], "problem_id": ["a", "b", "c"]}


def call(verifier, completions=("4", "5", "8"), **columns):
    return judge(
        verifier,
        prompts=["2+2", "3+3", "4+5"],
        completions=list(completions),
        columns={**COLUMNS, **columns},
        timeout_s=10.0,
    )


def test_a_column_corrects_failed_attempts():
    right, corrected, silent = call(with_correction(exact, "correction"))
    assert right == Verdict(1.0)
    assert corrected == Verdict(0.0, "Not equal.\n\n3+3 is 6.", kind="trace+correction", leaks_answer=True)
    assert silent == Verdict(0.0, "Not equal.", kind="trace")


def test_a_plain_reward_function_gets_only_the_correction():
    verdict = call(with_correction(plain, "correction", leaks_answer=False))[1]
    assert verdict == Verdict(0.0, "3+3 is 6.", kind="correction")


def test_a_program_sees_the_failed_attempts_only():
    seen = []

    def expert(rollout):
        seen.append(rollout)
        return f"{rollout.prompt} is not {rollout.completion}." if rollout.problem_id == "b" else None

    verifier = with_correction(exact, expert, leaks_answer=False)
    assert verifier.__name__ == "exact+correction"
    verdicts = call(verifier)
    assert [v.kind for v in verdicts] == ["", "trace+correction", "trace"]
    assert verdicts[1].feedback == "Not equal.\n\n3+3 is not 5."
    assert [(r.index, r.problem_id, r.completion) for r in seen] == [(1, "b", "5"), (2, "c", "8")]
    assert seen[0].verdict == Verdict(0.0, "Not equal.", kind="trace")
    assert seen[0].row["answer"] == "6"


def test_a_program_that_raises_costs_its_rollout():
    def expert(rollout):
        raise ConnectionError("the expert is away")

    verdicts = call(with_correction(exact, expert), completions=("4", "5", "9"))
    assert [v.score for v in verdicts] == [1.0, None, 1.0]
    assert "the expert is away" in verdicts[1].info["error"]


def test_partial_scores_have_a_threshold():
    def half(completions, **_):
        return [0.5] * len(completions)

    assert [v.kind for v in call(with_correction(half, "correction", threshold=0.5))] == ["", "", ""]
    assert [v.kind for v in call(with_correction(half, "correction"))] == ["correction", "correction", ""]


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="corrections come from the column 'fix', and the data has none"):
        with_correction(exact, "fix")(prompts=["?"], completions=["4"], answer=["4"])


ROLLOUT = Rollout(0, "b", [{"role": "user", "content": "3+3?"}], "5", Verdict(0.0, "Not equal."))


def test_a_person_is_asked_in_the_terminal(monkeypatch, capsys):
    terminal = io.StringIO("It is six.\nCount again.\n\n\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    assert ask_person(ROLLOUT) == "It is six.\nCount again."
    assert ask_person(ROLLOUT) is None
    shown = capsys.readouterr().out
    assert "3+3?\n--- attempt, score 0.0\n5\n--- feedback\nNot equal." in shown


def test_without_a_terminal_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x"))
    with pytest.raises(RuntimeError, match="asking a person needs a terminal"):
        ask_person(ROLLOUT)
