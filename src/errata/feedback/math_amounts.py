"""Answers that are amounts: numbers with units, money, times and dates, ratios, numbers in a base."""

from __future__ import annotations

import re
from fractions import Fraction

import sympy

from errata.feedback.math_cuts import Read, Tokens, expression_or_none, is_sign, is_word, letters, split, top_level
from errata.feedback.math_expression import expression
from errata.feedback.math_forms import Clock, Ratio, Reading, Value
from errata.feedback.math_text import UnreadableError
from errata.feedback.math_units import NO_UNIT, Unit, is_unit_name, number_in_words, unit

__all__ = ["added", "clock", "feet_and_minutes", "in_base", "money", "quantity", "ratio"]


def clock(tokens: Tokens, read: Read) -> Reading | None:
    """``12:30``, ``3:30 PM``, ``2024-01-05``, ``5/6/2024``: a time or date, not a quotient or difference."""
    text = "".join(t.text for t in tokens).replace(".", "").upper()
    if re.fullmatch(r"\d{4}-\d\d?-\d\d?|\d\d?/\d\d?/\d{4}|\d{4}/\d\d?/\d\d?", text):
        return Clock(text)
    match = re.fullmatch(r"\{?(\d\d?):([0-5]\d)(:[0-5]\d)?\}?\{?([AP]M)?\}?", text)
    if not match:
        return None
    hour = int(match[1])
    if match[4] and 1 <= hour <= 12:
        hour = hour % 12 + 12 * (match[4] == "PM")
        return Clock(f"{hour:02}:{match[2]}{match[3] or ':00'}")
    parts = [sympy.Integer(p) for p in text.split(":") if p.isdigit()]
    ratio = Ratio(tuple(parts)) if match[4] is None and all(parts) else None
    return Clock(f"{int(match[1]):02}:{match[2]}{match[3] or ':00'}{match[4] or ''}", ratio)


def feet_and_minutes(tokens: Tokens, read: Read) -> Reading | None:
    """``5'10"`` in inches; ``45° 30'`` in degrees."""
    text = "".join(t.text for t in tokens).replace("''", '"')
    if match := re.fullmatch(r"(\d+)'(?:(\d+)\")?", text):
        inches = 12 * int(match[1]) + int(match[2] or 0)
        return Value(sympy.Integer(inches), Unit(Fraction(254, 10000), "m1"))
    if match := re.fullmatch(
        r"(-?\d+)\^\{?circ\}?\{?(\d+)(?:'|\^\{?prime\}?)\}?(?:(\d+)(?:\"|\^\{?primeprime\}?))?", text
    ):
        parts = sympy.Rational(int(match[2]), 60) + sympy.Rational(int(match[3] or 0), 3600)
        return Value(int(match[1]) + parts, Unit(Fraction(1), "°1"))
    return None


def in_base(tokens: Tokens, read: Read) -> Reading | None:
    """``1A_{16}`` and ``101 (base 2)``; also ``_6C_3``, whose subscript is no base."""
    text = "".join(t.text for t in tokens)
    if match := re.fullmatch(r"(?:\{\})?[_^]\{?(\d{1,3})\}?C_\{?(\d{1,3})\}?", text):
        return Value(sympy.binomial(int(match[1]), int(match[2])))
    match = re.fullmatch(r"(\d[0-9A-F]*|[0-9A-F]{2,}(?=_\{?16\}?$))_\{?(\d+)\}?", text) or re.fullmatch(
        r"([0-9A-F]+)\(?(?:in)?base(\d+)\)?", text
    )
    if not match or not 2 <= int(match[2][:3]) <= 36:
        return None
    try:
        return Value(sympy.Integer(int(match[1], int(match[2]))))
    except ValueError:
        raise UnreadableError(f"{match[1]} is no number in base {match[2]}") from None


def ratio(tokens: Tokens, read: Read) -> Reading | None:
    """``2 : 3``, ``1:2:3``, ``2 to 3``."""
    parts, joints = split(tokens, lambda t: is_sign(t, ":") or is_word(t, "to"))
    return Ratio(tuple(expression(part) for part in parts)) if joints else None


_MONEY = ("$", "€", "£", "¥")


def money(tokens: Tokens, read: Read) -> Reading | None:
    r"""``\$32.50``, ``-\$5``."""
    sign = [tokens[0]] if is_sign(tokens[0], "-") else []
    rest = tokens[len(sign) :]
    if not rest or rest[0].text not in _MONEY:
        return None
    inner = read([*sign, *rest[1:]])
    if not isinstance(inner, Value) or (inner.unit != NO_UNIT and inner.unit.kind != "$1"):
        raise UnreadableError("an amount of money that is no number")
    return Value(inner.expr, Unit(Fraction(1), f"{rest[0].text}1"))


def quantity(tokens: Tokens, read: Read) -> Reading | None:
    r"""An expression, mostly a number, with a unit or without: ``12\text{ cm}^2``, ``50\%``, ``90^\circ``, ``5 apples``."""
    if len(tokens) > 2 and is_sign(tokens[-1], ")") and (note := _note(tokens, read)) is not None:
        return note
    if any(is_sign(t, "sin", "cos", "tan", "cot", "sec", "csc") for t in tokens):
        return Value(expression(tokens))
    for ending, name in ((["^", "circ"], "°1"), (["^", "{", "circ", "}"], "°1"), (["circ"], "°1"), (["%"], "%1")):
        if [t.text for t in tokens[-len(ending) :]] == ending and len(tokens) > len(ending):
            return Value(expression(tokens[: -len(ending)]), Unit(Fraction(1), name))
    if len(tokens) > 1 and (tokens[-1].text in _MONEY or is_sign(tokens[-1], "Omega")):
        amount = expression_or_none(tokens[:-1])
        if amount is not None and not amount.free_symbols:
            return Value(amount, Unit(Fraction(1), f"{tokens[-1].text}1".replace("Omega", "ohm")))
    at = _start_of_unit(tokens)
    if at is None:
        return Value(expression(tokens))
    value = expression(tokens[:at])
    if value.free_symbols - {sympy.Symbol("x")} and tokens[at].kind == "run":
        return Value(expression(tokens))
    if value.free_symbols:
        raise UnreadableError("a unit beside what is no number")
    following = next((i for i in range(at, len(tokens)) if tokens[i].kind == "number" and _counts(tokens, i)), None)
    if following is None:
        return Value(value, unit(tokens[at:]))
    first = unit([t for t in tokens[at:following] if not is_word(t, "and") and not is_sign(t, ",")])
    rest = read(tokens[following:])
    if first.counted or not isinstance(rest, Value) or rest.unit.kind != first.kind or rest.unit.factor >= first.factor:
        raise UnreadableError("two amounts that do not add up")
    return added(Value(value, first), rest)


def added(large: Value, small: Value) -> Value:
    """``2 hours`` and ``15 minutes`` in hours."""
    factor = small.unit.factor / large.unit.factor
    return Value(large.expr + small.expr * sympy.Rational(factor.numerator, factor.denominator), large.unit)


def _counts(tokens: Tokens, at: int) -> bool:
    """Whether a number counts a thing, and is not the power in ``cm^2``."""
    return not is_sign(tokens[at - 1], "^", "{", "-")


def _start_of_unit(tokens: Tokens) -> int | None:
    for i, token in top_level(tokens):
        if i and is_unit_name(token) and not is_sign(tokens[i - 1], "_", "^"):
            return i
    # an upright unit in braces, as of \mathrm{m/s}
    for i, token in enumerate(tokens):
        if i and is_sign(token, "{") and i + 1 < len(tokens) and tokens[i + 1].upright and is_unit_name(tokens[i + 1]):
            return None if is_sign(tokens[i - 1], "_", "^", "frac", "sqrt") else i
        if i and token.kind == "word" and is_sign(tokens[i - 1], "(") and i > 1:
            return i - 1 if is_unit_name(token) else None
    return None


def _note(tokens: Tokens, read: Read) -> Reading | None:
    """``5 (five)``: the same number again in words."""
    at = max(i for i, t in enumerate(tokens) if is_sign(t, "("))
    if at == 0:
        return None
    said = tokens[at + 1 : -1]
    number = number_in_words(" ".join(t.text for t in said)) if said and all(letters([t]) for t in said) else None
    if number is None:
        return None
    value = read(tokens[:at])
    if not isinstance(value, Value) or value.expr != number:
        raise UnreadableError("the number in words is another one")
    return value
