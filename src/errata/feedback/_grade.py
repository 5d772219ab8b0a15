"""Comparing answers with math-verify: loaded in a worker process only, which has its import over before the clock runs."""

from __future__ import annotations

import logging
import re
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that the time is limited by others, by us


def grade(question: dict[str, Any]) -> dict[str, Any]:
    """Whether the answer given, ``boxed`` or at the end of ``text``, equals ``answer``; and what was given."""
    answer, given = question["answer"], question["boxed"]
    if given is not None:
        attempt = _read(given)
    else:
        anchored = [kind(try_extract_without_anchor=False) for kind in (LatexExtractionConfig, ExprExtractionConfig)]
        attempt = parse(question["text"], extraction_config=anchored, parsing_timeout=None)
        given = str(attempt[-1]) if attempt else None
    right = given is not None and " ".join(given.split()) == " ".join(answer.split())
    if not right and attempt:
        right = verify(_read(answer), attempt, timeout_seconds=None)
    return {"right": bool(right), "given": given}


def _read(expression: str) -> list[Any]:
    plain = re.sub(r"(\d)[eE]([+-]?\d+)", r"\1\\times 10^{\2}", expression.strip().strip("$"))
    found: list[Any] = parse(f"${plain}$", parsing_timeout=None)
    return found
