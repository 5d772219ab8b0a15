"""Verifiers of the pinned runs. They import nothing of errata, so that they stay as they are while errata is rebuilt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_STEP = re.compile(r"(?P<step>[a-z][-+*][0-9])=(?P<got>[0-9])")


def solve(expression: str) -> str:
    """The right solution in full: ``solve("7a+3b*4") == "7a+3=0b*4=0"``. Arithmetic is modulo 10."""
    digit = int(expression[0])
    solution = expression[0]
    for k in range(1, len(expression), 3):
        step = expression[k : k + 3]
        digit = _apply(digit, step)
        solution += f"{step}={digit}"
    return solution


def exact(completions: Sequence[Any], expression: Sequence[str], **columns: Any) -> list[dict[str, Any]]:
    """Score 1 if every step is right, else 0 and a trace of the wrong steps."""
    return [_judge(_text(c), e) for c, e in zip(completions, expression, strict=True)]


def lenient(completions: Sequence[Any], expression: Sequence[str], **columns: Any) -> list[dict[str, Any]]:
    """As ``exact``, but a wrong first step alone is forgiven, so that a problem has several right solutions."""
    verdicts = exact(completions, expression)
    for verdict, e in zip(verdicts, expression, strict=True):
        told = verdict.get("feedback", "")
        if verdict.get("kind") == "trace" and told.startswith(e[:4]) and ";" not in told:
            verdict["score"] = 1.0
    return verdicts


def partial(completions: Sequence[Any], expression: Sequence[str], **columns: Any) -> list[dict[str, Any]]:
    """Score 1 if every step is right, 0.5 if one alone is wrong, else 0; with the same trace."""
    verdicts = exact(completions, expression)
    for verdict in verdicts:
        if verdict.get("kind") == "trace" and ";" not in verdict["feedback"]:
            verdict["score"] = 0.5
    return verdicts


def sometimes_none(completions: Sequence[Any], expression: Sequence[str], **columns: Any) -> list[Any]:
    """As ``lenient``, but attempts whose answer is 0 or 5 are not judged."""
    verdicts = lenient(completions, expression)
    return [None if _text(c)[-1:] in ("0", "5") else v for v, c in zip(verdicts, completions, strict=True)]


def _judge(attempt: str, expression: str) -> dict[str, Any]:
    right = solve(expression)
    if attempt == right:
        return {"score": 1.0}
    steps = [right[k : k + 3] for k in range(1, len(right), 5)]
    written = list(_STEP.finditer(attempt))
    if attempt[:1] != right[0] or [m["step"] for m in written] != steps:
        return {"score": 0.0, "feedback": "write the result after every step: 7a+3=0", "kind": "format"}
    told, before = [], int(attempt[0])
    for m in written:
        if (expected := _apply(before, m["step"])) != int(m["got"]):
            told.append(f"{before}{m['step']}={expected} not {m['got']}")
        before = int(m["got"])
    return {"score": 0.0, "feedback": ";".join(told), "kind": "trace"}


def _apply(digit: int, step: str) -> int:
    n = int(step[2])
    return (digit + n if step[1] == "+" else digit - n if step[1] == "-" else digit * n) % 10


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
