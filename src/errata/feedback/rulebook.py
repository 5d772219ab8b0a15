"""The verifier of the embedded tasks: step-by-step arithmetic mod 10 under a rulebook.

A problem is a chain of lettered steps, ``7a+3b*4c-2``. An attempt repeats it with the result after every step:
``7a+3=0b*4=3c-2=1``. The last result is the answer. A rulebook says what each operator means, the usual operation plus a
constant, mod 10: ``"x+n, x-n, x*n+3"``. Every step is executed on the digit that the attempt wrote before it, so one
wrong step counts as one error, whatever follows from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from errata.records import Verdict

__all__ = ["USUAL", "RulebookVerifier", "grade", "judge", "rule_of", "solve", "steps_of"]

Rule = Callable[[int, str, int], int]
"""``rule(x, operator, n)`` is the next digit."""

Completion = str | Sequence[Mapping[str, Any]]
"""A text or a chat."""

USUAL = "x+n, x-n, x*n"
"""The usual rules of arithmetic."""

_RULE = re.compile(r"x([-+*])n(?:\+(\d))?")
_STEP = re.compile(r"([a-z][-+*][0-9])=([0-9])")
_SHAPE = re.compile(rf"[0-9](?:{_STEP.pattern})*")
_FEEDBACK = ("trace", "correction", "bit")
_TRACE = ("first", "all")


def rule_of(rulebook: str) -> Rule:
    """The rule a rulebook's text stands for. Raises ``ValueError`` if the text is not one.

    ``rule_of("x+n, x-n, x*n+3")(4, "*", 2) == 1``
    """
    matches = [_RULE.fullmatch(part.strip()) for part in rulebook.split(",")]
    shift = {m[1]: int(m[2] or 0) for m in matches if m}
    if None in matches or len(shift) != len(matches):
        raise ValueError(f"rulebook: {rulebook!r} is not a list of rules like {USUAL!r} or 'x*n+3'")

    def rule(x: int, operator: str, n: int) -> int:
        if operator not in shift:
            raise ValueError(f"rulebook: {rulebook!r} has no rule for {operator!r}")
        value = x + n if operator == "+" else x - n if operator == "-" else x * n
        return (value + shift[operator]) % 10

    return rule


def steps_of(expression: str) -> list[str]:
    """``steps_of("7a+3b*4") == ["a+3", "b*4"]``."""
    return [expression[k : k + 3] for k in range(1, len(expression), 3)]


def solve(expression: str, rule: Rule) -> str:
    """The right solution in full: ``solve("7a+3b*4", rule_of("x+n, x-n, x*n+3")) == "7a+3=0b*4=3"``."""
    solution = expression[0]
    for step in steps_of(expression):
        solution += f"{step}={rule(int(solution[-1]), step[1], int(step[2]))}"
    return solution


def grade(attempt: str, expression: str, rule: Rule, *, full_marks: float) -> Verdict:
    """A number alone: ``full_marks`` times the share of right steps, 0 for a malformed attempt. No feedback.

    A step is right if it follows from the digit that the attempt wrote before it. ``info`` as of :func:`judge`.
    """
    verdict = judge(attempt, expression, rule, feedback="bit")
    if "chosen" not in verdict.info:
        return verdict
    wrong = verdict.info.get("wrong_steps", [])
    return Verdict(full_marks * (1 - len(wrong) / len(steps_of(expression))), info=verdict.info)


def judge(attempt: str, expression: str, rule: Rule, *, feedback: str = "trace", trace: str = "all") -> Verdict:
    """The verdict on one attempt: score 1.0 if every step and the answer are right, else 0.0 with feedback.

    Args:
        attempt: the completion's text.
        expression: the problem, ``"7a+3b*4"``.
        rule: from :func:`rule_of`.
        feedback: ``trace`` names each wrong step with the right result for its digits and the written one,
            ``"0b*4=3 not 0"``. ``correction`` is the attempt, corrected from its first error on. ``bit`` is no feedback.
        trace: ``all`` wrong steps, or the ``first``.

    A malformed attempt gets a remark on the format instead of a trace. ``info`` holds the answer, ``chosen``, and the
    letters of the ``wrong_steps``.
    """
    right = solve(expression, rule)
    attempt = attempt.strip()
    well_formed = _SHAPE.fullmatch(attempt) is not None and len(attempt) == len(right)
    errors = _errors(attempt, expression, rule) if well_formed else []
    if well_formed and not errors:
        return Verdict(1.0, info={"chosen": attempt[-1]})
    info = {"chosen": attempt[-1], "wrong_steps": [letter for letter, _ in errors]} if well_formed else {}
    if feedback == "bit":
        return Verdict(0.0, info=info)
    if feedback == "correction":
        # Arithmetic is deterministic: an attempt that is corrected from its first error on is the right solution.
        return Verdict(0.0, right, kind="correction", leaks_answer=True, info=info)
    if not well_formed:
        return Verdict(0.0, "write the result after every step: 7a+3=0", kind="format")
    trace_text = ";".join(text for _, text in (errors[:1] if trace == "first" else errors))
    leaks = errors[0][0] == expression[-3]  # all earlier steps are right, so the trace names the answer
    return Verdict(0.0, trace_text, kind="trace", leaks_answer=leaks, info=info)


class RulebookVerifier:
    """The verifier of the ``rulebook`` tasks. It reads the columns ``expression`` and ``rulebook``, and ``full_marks`` where
    there is one: rows with less than 1 are graded (:func:`grade`).

    Args:
        feedback: ``"trace"``, ``"correction"`` or ``"bit"``; see :func:`judge`.
        trace: ``"all"`` or ``"first"``.
    Raises:
        ValueError: another value.
    """

    def __init__(self, feedback: str = "trace", trace: str = "all") -> None:
        if feedback not in _FEEDBACK:
            raise ValueError(f"feedback: {feedback!r} is none of {', '.join(_FEEDBACK)}")
        if trace not in _TRACE:
            raise ValueError(f"trace: {trace!r} is none of {', '.join(_TRACE)}")
        self.feedback = feedback
        self.trace = trace
        self.__name__ = "rulebook"  # TRL logs a reward function by its name

    def __call__(
        self,
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        prompts: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Verdict]:
        """One verdict per completion, a text or a chat. Raises ``ValueError`` if a column it reads is missing."""
        for name in ("expression", "rulebook"):
            if name not in columns:
                raise ValueError(f"columns: the rulebook verifier reads the column {name!r}, and the data has none")
        full_marks = columns.get("full_marks", [1.0] * len(completions))
        rows = zip(completions, columns["expression"], columns["rulebook"], full_marks, strict=True)
        return [
            grade(_text(completion), expression, rule_of(rulebook), full_marks=most)
            if most < 1
            else judge(_text(completion), expression, rule_of(rulebook), feedback=self.feedback, trace=self.trace)
            for completion, expression, rulebook, most in rows
        ]


def _errors(attempt: str, expression: str, rule: Rule) -> list[tuple[str, str]]:
    """Letter and trace of each wrong step, given the digit written before it. A wrong first digit counts as the first step's."""
    steps = steps_of(expression)
    errors = [] if attempt[0] == expression[0] else [(steps[0][0], f"{expression[0]} not {attempt[0]}")]
    before = attempt[0]
    for step, (written, got) in zip(steps, _STEP.findall(attempt), strict=True):
        expected = str(rule(int(before), step[1], int(step[2])))
        if written != step:
            errors.append((step[0], f"{before}{step}={expected} not {written}={got}"))
        elif got != expected:
            errors.append((step[0], f"{before}{step}={expected} not {got}"))
        before = got
    return errors


def _text(completion: Completion) -> str:
    return completion if isinstance(completion, str) else "".join(str(m.get("content") or "") for m in completion)
