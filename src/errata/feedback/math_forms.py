"""What a final answer can be: a value with its unit, a tuple, a set, intervals, an equation, words, ..."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from errata.feedback.math_units import NO_UNIT, Unit

__all__ = [
    "Cases",
    "Clock",
    "Dotted",
    "Equation",
    "Family",
    "Group",
    "Items",
    "Matrix",
    "Named",
    "Pieces",
    "Ratio",
    "Reading",
    "Relation",
    "Residue",
    "Value",
    "Words",
]


@dataclass(frozen=True, slots=True)
class Value:
    """``12\\text{ cm}``: an expression and its unit."""

    expr: sympy.Expr
    unit: Unit = NO_UNIT


@dataclass(frozen=True, slots=True)
class Words:
    """``\\text{an ellipse}`` is ``Words("ellipse")``; letters such as ``abc`` may also be a product, ``expr``."""

    text: str
    expr: sympy.Expr | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """``(1, 2)``, ``[0, 1)``, ``\\langle 1, 2\\rangle``: in order, with its brackets."""

    items: tuple[Reading, ...]
    open: str
    close: str


@dataclass(frozen=True, slots=True)
class Items:
    """``1, 2`` and ``\\{1, 2\\}``, in any order."""

    items: tuple[Reading, ...]
    braces: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A union of intervals, each ``(low, low is in, high, high is in)``, for a variable if one is named."""

    parts: tuple[tuple[sympy.Expr, bool, sympy.Expr, bool], ...]
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Equation:
    """``f(x) = 2x+1``: the name that is defined, if the left side is one, both sides as expressions, the right side."""

    name: str
    left: sympy.Expr | None
    right: Reading


@dataclass(frozen=True, slots=True)
class Relation:
    """``a + b > c`` as ``a + b - c`` and ``>``, with ``<`` turned round."""

    sign: str
    difference: sympy.Expr


@dataclass(frozen=True, slots=True)
class Named:
    """``x = 1, y = 2``: several names with their values, in the order written."""

    values: tuple[tuple[str, Reading], ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[sympy.Expr, ...], ...]


@dataclass(frozen=True, slots=True)
class Residue:
    """``3 \\pmod 7``."""

    value: sympy.Expr
    modulus: sympy.Expr


@dataclass(frozen=True, slots=True)
class Ratio:
    """``2 : 3``."""

    parts: tuple[sympy.Expr, ...]


@dataclass(frozen=True, slots=True)
class Clock:
    """A time or date as written, ``12:30`` or ``2024-01-05``."""

    text: str
    ratio: Ratio | None = None


@dataclass(frozen=True, slots=True)
class Cases:
    """A function by cases: each value with its condition."""

    rows: tuple[tuple[Reading, Reading], ...]


@dataclass(frozen=True, slots=True)
class Dotted:
    """A list that goes on: ``1, 3, 5, \\ldots``, with ``None`` where the dots stand."""

    items: tuple[Reading | None, ...]
    braces: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """A reading for all values of a parameter: ``k\\pi, k \\in \\mathbb{Z}``."""

    reading: Reading
    parameter: str
    numbers: str


Reading = (
    Value | Words | Group | Items | Pieces | Equation | Relation | Named | Matrix | Residue | Ratio | Clock | Cases
    | Dotted | Family
)  # fmt: skip
