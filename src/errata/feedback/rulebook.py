"""The embedded world's judge: step-by-step arithmetic mod 10 under a rulebook.

A problem is a chain of lettered steps, ``7a+3b*4c-2``. An attempt writes it down with the result after every step, the last
being the answer: ``7a+3=0b*4=3c-2=1``. A rulebook says what each operator means, the usual operation plus a constant, mod
10: ``"x+n, x-n, x*n+3"``. Every step is executed on the digit the attempt itself wrote before it: one slip is one error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from errata.records import Verdict

__all__ = ["USUAL", "RulebookVerifier", "judge", "rule_of", "solve", "steps_of"]

Rule = Callable[[int, str, int], int]
"""``rule(x, operator, n)`` is the next digit."""

Completion = str | Sequence[Mapping[str, Any]]
"""A text or a chat."""

USUAL = "x+n, x-n, x*n"
"""The rulebook everyone knows."""

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


def judge(attempt: str, expression: str, rule: Rule, *, feedback: str = "trace", trace: str = "all") -> Verdict:
    """Executes one attempt: score 1.0 if every step and the answer are right, else 0.0 with what there is to say.

    ``feedback="trace"`` names each wrong step with the result of its own digits and the one written,
    ``"0b*4=3 not 0"``, and stops at the first with ``trace="first"``. ``"correction"`` is an expert's corrected
    version of the attempt, kept up to its first error. ``"bit"`` says nothing. A malformed attempt is told the format
    instead of a trace. ``info`` holds the answer it gave, ``chosen``, and the letters of its ``wrong_steps``.
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
        # The world is deterministic: an attempt kept up to its first error and mended from there is the right solution.
        return Verdict(0.0, right, kind="correction", leaks_answer=True, info=info)
    if not well_formed:
        return Verdict(0.0, "write the result after every step: 7a+3=0", kind="format")
    told = ";".join(text for _, text in (errors[:1] if trace == "first" else errors))
    leaks = errors[0][0] == expression[-3]  # all before the answer is right, so what is expected of it is the answer
    return Verdict(0.0, told, kind="trace", leaks_answer=leaks, info=info)


class RulebookVerifier:
    """Called like a TRL reward function, ``verifier(completions=..., **columns)``, but returns verdicts.

    Reads the columns ``expression`` (``"7a+3b*4"``) and ``rulebook`` (``"x+n, x-n, x*n+3"``). ``feedback`` is one of
    ``"trace"``, ``"correction"``, ``"bit"``, and ``trace`` of ``"all"``, ``"first"``: see :func:`judge`. Raises
    ``ValueError`` for others.
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
        rows = zip(completions, columns["expression"], columns["rulebook"], strict=True)
        return [
            judge(_text(completion), expression, rule_of(rulebook), feedback=self.feedback, trace=self.trace)
            for completion, expression, rulebook in rows
        ]


def _errors(attempt: str, expression: str, rule: Rule) -> list[tuple[str, str]]:
    """Letter and trace of each step that is wrong after the digit written before it; a miscopied start counts to the first."""
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
