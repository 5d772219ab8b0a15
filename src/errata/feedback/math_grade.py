"""The comparison of a final answer with the right one: which rule says that they are the same, and else what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from errata.feedback.math_equality import agree, is_decimal, nearly
from errata.feedback.math_final import last_boxed
from errata.feedback.math_forms import (
    Equation,
    Group,
    Items,
    Matrix,
    Pieces,
    Reading,
    Value,
    Words,
)
from errata.feedback.math_numbers import same_expression
from errata.feedback.math_ranges import as_pieces
from errata.feedback.math_reading import readings, text_key
from errata.feedback.math_text import UnreadableError

__all__ = ["compare"]


def compare(answer: str, texts: Sequence[str]) -> dict[str, Any]:
    """``{"right": True, "rule": "the same value", "unread": "", "remark": "", "leaks": False}`` and the like."""
    answer = last_boxed(answer) or answer
    if len(texts) == 1 and _written_alike(answer, texts[0]):
        return _graded(right=True, rule="written alike")
    try:
        gold = readings(answer)
    except UnreadableError as error:
        return _graded(rule=f"the right answer cannot be read ({error}) and is not written alike")
    try:
        given = _readings_of(texts)
    except UnreadableError as error:
        return _graded(rule="the answer given cannot be read as a whole", unread=str(error))
    for ours in gold:
        for theirs in given:
            if rule := agree(ours, theirs):
                return _graded(right=True, rule=rule)
    ours, theirs = gold[0], given[0]
    return _graded(rule="not the same", remark=_remark(ours, theirs), leaks=_one_of_two(ours, theirs))


def _graded(
    *, rule: str, right: bool = False, unread: str = "", remark: str = "", leaks: bool = False
) -> dict[str, Any]:
    return {"right": right, "rule": rule, "unread": unread, "remark": remark, "leaks": leaks}


def _written_alike(answer: str, given: str) -> bool:
    return text_key(answer) == text_key(given)


def _readings_of(texts: Sequence[str]) -> list[Reading]:
    """The readings of one answer; of several boxes as a list, or as one where all of them mean the same."""
    if len(texts) == 1:
        return readings(texts[0])
    parts = [readings(text)[0] for text in texts]
    if all(agree(parts[0], part) and agree(part, parts[0]) for part in parts[1:]):
        return parts
    return readings(" , ".join(texts))


_PAIRS = (
    *({"yes", "no"}, {"true", "false"}, {"even", "odd"}, {"convergent", "divergent"}, {"converges", "diverges"}),
    *({"increasing", "decreasing"}, {"positive", "negative"}, {"rational", "irrational"}, {"prime", "composite"}),
    *({"bounded", "unbounded"}, {"continuous", "discontinuous"}, {"clockwise", "counterclockwise"}),
)


def _one_of_two(gold: Reading, given: Reading) -> bool:
    """Whether the wrong answer names the right one, as "no" does where only "yes" is left."""
    if not (isinstance(gold, Words) and isinstance(given, Words)):
        return False
    return {gold.text.lower(), given.text.lower()} in _PAIRS


def _remark(gold: Reading, given: Reading) -> str:
    """What form of answer was expected, where the form is wrong; never the answer."""
    if _percent_apart(gold, given):
        return "Look at the percent sign."
    if nearly(gold, given):
        if isinstance(gold, Value) and is_decimal(gold):
            return "It is close, but not the same number."
        return "It is close, but an exact value is expected."
    if (
        isinstance(gold, Value)
        and isinstance(given, Value)
        and gold.unit != given.unit
        and given.unit.kind
        and gold.unit.kind
    ):
        return "Look at the unit."
    if as_pieces(gold) is not None and as_pieces(given) is not None and isinstance(given, Group | Pieces):
        return _remark_on_ends(as_pieces(gold), as_pieces(given))
    ours, theirs = _form(gold), _form(given)
    if ours and ours != theirs:
        return f"It is {theirs}; {ours} is expected." if theirs else f"{ours.capitalize()} is expected."
    if isinstance(gold, Group | Items) and isinstance(given, Group | Items) and len(gold.items) == len(given.items):
        right = sum(any(agree(a, b) for a in gold.items) for b in given.items)
        if isinstance(gold, Group):
            right = sum(bool(agree(a, b)) for a, b in zip(gold.items, given.items, strict=True))
        if right == len(given.items):
            return "Its parts are right, but not the brackets around them."
        return f"{right} of its {len(given.items)} parts {'is' if right == 1 else 'are'} right." if right else ""
    return ""


def _percent_apart(gold: Reading, given: Reading) -> bool:
    """Whether only the sign of percent is wrong, ``0.5%`` for ``0.5``."""
    if not (isinstance(gold, Value) and isinstance(given, Value)):
        return False
    return {gold.unit.kind, given.unit.kind} == {"%1", ""} and same_expression(gold.expr, given.expr)


def _remark_on_ends(gold: Pieces | None, given: Pieces | None) -> str:
    """Whether only the brackets of an interval are wrong, ``[0, 1]`` for ``[0, 1)``."""
    if gold is None or given is None or len(gold.parts) != len(given.parts):
        return ""
    if gold.variable and given.variable and gold.variable != given.variable:
        return "Look at the name of the variable."
    ends = [(a[i], b[i]) for a, b in zip(gold.parts, given.parts, strict=True) for i in (0, 2)]
    if all(same_expression(a, b) for a, b in ends):
        return "Look at whether the ends belong to it."
    return ""


def _form(reading: Reading) -> str:
    if isinstance(reading, Group | Items):
        return "one value" if len(reading.items) == 1 else f"a list of {len(reading.items)}"
    if isinstance(reading, Value):
        return "a formula" if reading.expr.free_symbols else "one value"
    if isinstance(reading, Equation):
        return _form(reading.right)
    if isinstance(reading, Pieces):
        return "an interval or inequality"
    if isinstance(reading, Matrix):
        return f"a matrix of {len(reading.rows)} by {len(reading.rows[0])}"
    return {"Words": "a word or phrase", "Ratio": "a ratio", "Named": "a value for each of several names"}.get(
        type(reading).__name__, ""
    )
