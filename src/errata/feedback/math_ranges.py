r"""Answers that are intervals: ``[0, 1) \\cup (2, \\infty)``, ``x \\le 3``, ``x \\in (-1, 2)``, "at least 5"."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sympy

from errata.feedback.math_cuts import INEQUALITIES, Read, Tokens, are_names, is_sign, is_word, name_of, split, top_level
from errata.feedback.math_expression import expression
from errata.feedback.math_forms import Group, Items, Pieces, Reading, Relation, Value, Words
from errata.feedback.math_text import UnreadableError

__all__ = [
    "ALL_REALS",
    "as_pieces",
    "bound_in_words",
    "by_condition",
    "constant_set",
    "inequality",
    "interval",
    "membership",
    "shared",
    "union",
    "united",
]

ALL_REALS = ((-sympy.oo, False, sympy.oo, False),)


def as_pieces(reading: Reading) -> Pieces | None:
    """A reading as intervals: pairs in brackets, sets of numbers as points; ``None`` for any other."""
    if isinstance(reading, Pieces):
        return reading
    if isinstance(reading, Group) and len(reading.items) == 2 and reading.open in "([" and reading.close in ")]":
        low, high = reading.items
        if isinstance(low, Value) and isinstance(high, Value):
            return Pieces(((low.expr, reading.open == "[", high.expr, reading.close == "]"),))
    if isinstance(reading, Items) and reading.braces and all(isinstance(i, Value) for i in reading.items):
        return Pieces(tuple((i.expr, True, i.expr, True) for i in reading.items if isinstance(i, Value)))
    return None


def bound_in_words(tokens: Tokens, read: Read) -> Reading | None:
    """``at least 5`` and ``5 or more`` are ``[5, oo)``."""
    bounds = {
        "at least": ("geq", 0), "at most": ("leq", 0), "more than": (">", 0), "less than": ("<", 0),
        "greater than": (">", 0), "fewer than": ("<", 0), "no more than": ("leq", 0), "no less than": ("geq", 0),
        "or more": ("geq", 1), "or less": ("leq", 1), "or greater": ("geq", 1), "or fewer": ("leq", 1),
    }  # fmt: skip
    lower = [t.text.lower() if t.kind in ("word", "run") else "" for t in tokens]
    for phrase, (sign, end) in bounds.items():
        n = len(phrase.split())
        if len(tokens) > n and " ".join(lower[-n:] if end else lower[:n]) == phrase:
            rest = read(tokens[:-n] if end else tokens[n:])
            return interval(sign, rest.expr, "") if isinstance(rest, Value) else None
    return None


def union(tokens: Tokens, read: Read) -> Reading | None:
    r"""``(-\infty,-1)\cup(1,\infty)``, ``\mathbb{R}\setminus\{1\}``."""
    parts, joints = split(tokens, lambda t: is_sign(t, "cup", "cap", "setminus") or is_word(t, "U"))
    if not joints:
        return None
    pieces = [as_pieces(read(part)) for part in parts]
    if any(p is None for p in pieces):
        raise UnreadableError("a union of what are no intervals")
    some = [p for p in pieces if p is not None]
    if all(is_sign(j, "cup") or j.kind == "run" for j in joints):
        return united(some)
    if len(joints) == 1 and is_sign(joints[0], "setminus") and some[0].parts == ALL_REALS:
        points = sorted(p[0] for p in some[1].parts if p[0] == p[2] and p[0].is_real)
        if len(points) == len(some[1].parts):
            edges = [-sympy.oo, *points, sympy.oo]
            return Pieces(tuple((a, False, b, False) for a, b in itertools.pairwise(edges)))
    if all(is_sign(j, "cap") for j in joints):
        return shared(some)
    raise UnreadableError("a difference of sets is not computed")


def united(pieces: Sequence[Pieces]) -> Pieces:
    names = {p.variable for p in pieces if p.variable}
    if len(names) > 1:
        raise UnreadableError("intervals for different variables")
    return Pieces(tuple(part for p in pieces for part in p.parts), names.pop() if names else "")


def shared(pieces: Sequence[Pieces]) -> Pieces:
    """``x > 0 and x != 1``: what is in all of them, of intervals between given numbers."""
    names = {p.variable for p in pieces if p.variable}
    ends = [v for p in pieces for part in p.parts for v in (part[0], part[2])]
    if len(names) > 1 or not all(v.is_extended_real and not v.free_symbols for v in ends):
        raise UnreadableError("several conditions at once are not computed")
    parts = pieces[0].parts
    for other in pieces[1:]:
        parts = tuple(c for a in parts for b in other.parts if (c := _overlap(a, b)) is not None)
    if not parts:
        raise UnreadableError("the conditions exclude each other")
    return Pieces(parts, names.pop() if names else "")


def _overlap(one: Any, other: Any) -> Any:
    """What two intervals share; ``None`` if it is nothing."""
    (a, a_in, b, b_in), (c, c_in, d, d_in) = one, other
    low, low_in = (a, a_in) if a > c else (c, c_in) if c > a else (a, a_in and c_in)
    high, high_in = (b, b_in) if b < d else (d, d_in) if d < b else (b, b_in and d_in)
    return (low, low_in, high, high_in) if low < high or (low == high and low_in and high_in) else None


def membership(tokens: Tokens, read: Read) -> Reading | None:
    r"""``x \in (-1, 2)`` is the interval, ``(x,y) \in \{(1,2)\}`` the set."""
    parts, signs = split(tokens, lambda t: is_sign(t, "in"))
    if len(signs) != 1 or any(is_sign(t, *INEQUALITIES, "=") for _, t in top_level(tokens)):
        return None
    name = name_of(parts[0])
    inner = read(parts[1])
    pieces = as_pieces(inner)
    if pieces is not None and isinstance(inner, Pieces | Group):
        return replace(pieces, variable=name)
    if (name or are_names(parts[0])) and isinstance(inner, Items | Pieces):
        return inner
    raise UnreadableError("a membership that is no name and its set")


def inequality(tokens: Tokens, read: Read) -> Reading | None:
    r"""``x \le 3``, ``-1 < x < 2``, ``> 5`` as intervals; ``a + b > c`` as a relation."""
    parts, signs = split(tokens, lambda t: is_sign(t, *INEQUALITIES))
    if not signs or any(is_sign(t, "=") for _, t in top_level(tokens)):
        return None
    if len(signs) == 1 and not parts[0]:
        return interval(signs[0].text, expression(parts[1]), "")
    sides = [expression(part) for part in parts]
    names = [name_of(part) for part in parts]
    if len(signs) == 1:
        sign, turned = signs[0].text, INEQUALITIES[signs[0].text]
        if names[0] and not sides[1].free_symbols:
            return interval(sign, sides[1], names[0])
        if names[1] and not sides[0].free_symbols:
            return interval(turned, sides[0], names[1])
        gap = sides[0] - sides[1]
        return Relation(turned, -gap) if sign in ("<", "leq") else Relation(sign, gap)
    if len(signs) == 2 and names[1]:
        first, second = signs[0].text, signs[1].text
        if {first, second} <= {"<", "leq"}:
            return Pieces(((sides[0], first == "leq", sides[2], second == "leq"),), names[1])
        if {first, second} <= {">", "geq"}:
            return Pieces(((sides[2], second == "geq", sides[0], first == "geq"),), names[1])
    raise UnreadableError("a chain of relations cannot be read")


def interval(sign: str, bound: sympy.Expr, variable: str) -> Pieces:
    if sign in (">", "geq"):
        return Pieces(((bound, sign == "geq", sympy.oo, False),), variable)
    if sign in ("<", "leq"):
        return Pieces(((-sympy.oo, False, bound, sign == "leq"),), variable)
    return Pieces(((-sympy.oo, False, bound, False), (bound, False, sympy.oo, False)), variable)


def by_condition(tokens: Tokens, read: Read) -> Reading:
    r"""``\{x \mid x > 2\}`` is the interval."""
    parts, _ = split(tokens, lambda t: is_sign(t, "|", ":"))
    if len(parts) == 2 and (name := name_of(parts[0])):
        pieces = read(parts[1])
        if isinstance(pieces, Pieces) and pieces.variable == name:
            return pieces
    raise UnreadableError("a set by a condition that is no interval")


def constant_set(tokens: Tokens, read: Read) -> Reading | None:
    r"""``\mathbb{R}``, ``\emptyset``."""
    if len(tokens) != 1 or tokens[0].kind != "command":
        return None
    if tokens[0].text == "mathbb R":
        return Pieces(ALL_REALS)
    return (
        Words("\\" + tokens[0].text) if tokens[0].text.startswith("mathbb ") or tokens[0].text == "emptyset" else None
    )
