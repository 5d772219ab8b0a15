"""The embedded world's judge: step-by-step arithmetic mod 10 under a rulebook.

A problem is a chain of operators read from left to right, ``7+3*4``; an attempt writes every step and the answer,
``7+3=0;0*4=3;=3``. A rulebook says what each operator means; each is the usual one plus a constant, mod 10:
``"x+n, x-n, x*n+3"``. Every step is executed on the digits the attempt itself wrote: one slip is one error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from errata.records import Verdict

__all__ = ["USUAL", "RulebookVerifier", "judge", "rule_of", "solve"]

Rule = Callable[[int, str, int], int]
"""``rule(x, operator, n)`` is the next digit."""

Completion = str | Sequence[Mapping[str, Any]]
"""A text or a chat."""
Step = tuple[str, str, str, str]
"""Digit, operator, digit, result, as written."""

USUAL = "x+n, x-n, x*n"
"""The rulebook everyone knows."""

_RULE = re.compile(r"x([-+*])n(?:\+(\d))?")
_STEP = re.compile(r"([0-9])([-+*])([0-9])=([0-9]);")
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


def solve(expression: str, rule: Rule) -> str:
    """The right solution in full: ``solve("7+3*4", rule_of("x+n, x-n, x*n+3")) == "7+3=0;0*4=3;=3"``."""
    x, steps = int(expression[0]), []
    for operator, n in _operations(expression):
        value = rule(x, operator, int(n))
        steps.append(f"{x}{operator}{n}={value};")
        x = value
    return "".join(steps) + f"={x}"


def judge(attempt: str, expression: str, rule: Rule, *, feedback: str = "trace", trace: str = "all") -> Verdict:
    """Executes one attempt: score 1.0 if every step and the answer are right, else 0.0 with what there is to say.

    ``feedback="trace"`` names each wrong step with the result of its own digits and the one written,
    ``"2:0*4=3 not 0"``, and stops at the first with ``trace="first"``. ``"correction"`` is an expert's corrected version
    of the attempt, kept up to its first error. ``"bit"`` says nothing. A malformed attempt is told the format instead
    of a trace.
    """
    right = solve(expression, rule)
    parsed = _parse(attempt.strip(), len(expression) // 2)
    errors = _errors(expression, *parsed, rule) if parsed else []
    if parsed and not errors:
        return Verdict(1.0)
    if feedback == "bit":
        return Verdict(0.0)
    info = {"wrong_steps": [k for k, _, _ in errors]}
    if feedback == "correction":
        # The world is deterministic: an attempt kept up to its first error and mended from there is the right solution.
        return Verdict(0.0, right, kind="correction", leaks_answer=True, info=info)
    if not parsed:
        return Verdict(0.0, f"write {len(expression) // 2} steps like 7+3=0; then the answer like =0", kind="format")
    shown = errors[:1] if trace == "first" else errors
    told = ";".join(f"{expected} not {got}" for _, expected, got in shown)
    # Where all before the last result is right, the value expected there is the answer.
    leaks = errors[0][0] >= len(expression) // 2
    return Verdict(0.0, told, kind="trace", leaks_answer=leaks, info=info)


class RulebookVerifier:
    """Called like a TRL reward function, ``verifier(completions=..., **columns)``, but returns verdicts.

    Reads the columns ``expression`` (``"7+3*4"``) and ``rulebook`` (``"x+n, x-n, x*n+3"``). ``feedback`` is one of
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


def _operations(expression: str) -> list[tuple[str, str]]:
    return list(zip(expression[1::2], expression[2::2], strict=True))


def _parse(attempt: str, n_steps: int) -> tuple[list[Step], str] | None:
    """The steps and the answer; ``None`` if the attempt is not exactly ``n_steps`` steps and an answer."""
    shape = re.fullmatch(rf"((?:{_STEP.pattern}){{{n_steps}}})=(\d)", attempt)
    return (_STEP.findall(shape[1]), shape[shape.lastindex or 0]) if shape else None


def _errors(expression: str, steps: Sequence[Step], answer: str, rule: Rule) -> list[tuple[int, str, str]]:
    """Step number, what was expected and what was written, for each step that is wrong on the digits before it."""
    errors = []
    running = expression[0]
    for k, (step, (operator, n)) in enumerate(zip(steps, _operations(expression), strict=True), start=1):
        *written, value = step
        expected = str(rule(int(running), operator, int(n)))
        if written != [running, operator, n]:
            errors.append((k, f"{k}:{running}{operator}{n}={expected}", "{}{}{}={}".format(*step)))
        elif value != expected:
            errors.append((k, f"{k}:{running}{operator}{n}={expected}", value))
        running = value
    if answer != running:
        errors.append((len(steps) + 1, f"={running}", f"={answer}"))
    return errors


def _text(completion: Completion) -> str:
    return completion if isinstance(completion, str) else "".join(str(m.get("content") or "") for m in completion)
