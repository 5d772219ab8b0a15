"""Powers, factorials and functions that refuse what would take for ever to compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy

from errata.feedback.math_text import UnreadableError

__all__ = ["FUNCTIONS", "INVERSE", "OF_SEVERAL", "binomial", "double_factorial", "exact", "factorial", "power"]

_LARGEST_BITS = 100_000


_LARGEST_FACTORIAL = 3000


def power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    """``base ** exponent``, unless the number would have more digits than anyone compares."""
    if not base.free_symbols and not exponent.free_symbols and exponent.is_number and base.is_number:
        size = abs(complex(exponent.evalf(8)))
        magnitude = abs(complex(base.evalf(8))) if abs(_log2(base)) < 900 else math.inf
        bits = abs(_log2(base)) if magnitude not in (0.0, 1.0) else 1.0
        digits = max(getattr(base, "p", 1), getattr(base, "q", 1)).bit_length() if base.is_Rational else 0
        if size * max(bits, digits, 1.0 if size < 1e6 else 2.0) > _LARGEST_BITS:
            raise UnreadableError("a power is too large to compute")
    elif exponent.is_Integer and abs(exponent) > _LARGEST_BITS:
        raise UnreadableError("a power is too large to compute")
    if base == sympy.E and exponent.is_Rational and abs(exponent) > _LARGEST_BITS:
        raise UnreadableError("a power is too large to compute")
    return base**exponent


def _log2(number: sympy.Expr) -> float:
    value = abs(number.evalf(8))
    return 0.0 if value == 0 else float(sympy.log(value, 2).evalf(8))


def _whole(number: Any) -> int:
    if not number.is_Integer:
        raise UnreadableError("a whole number is missing")
    return int(number)


def factorial(number: sympy.Expr) -> sympy.Expr:
    if number.is_number and not (number.is_Integer and 0 <= number <= _LARGEST_FACTORIAL):
        raise UnreadableError("a factorial is too large to compute")
    return sympy.factorial(number)


def double_factorial(number: sympy.Expr) -> sympy.Expr:
    if not (number.is_Integer and 0 <= number <= _LARGEST_FACTORIAL):
        raise UnreadableError("a double factorial is too large to compute")
    return sympy.factorial2(number)


def binomial(n: sympy.Expr, k: sympy.Expr) -> sympy.Expr:
    if n.is_number and not (n.is_Rational and abs(n) <= _LARGEST_FACTORIAL):
        raise UnreadableError("a binomial coefficient is too large to compute")
    return sympy.binomial(n, k)


def exact(value: sympy.Expr) -> sympy.Expr:
    if value.is_number and not value.is_Rational:
        raise UnreadableError("a whole number is missing")
    return value


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "sinh": sympy.sinh, "cosh": sympy.cosh,
    "tanh": sympy.tanh, "ln": sympy.log, "lg": lambda x: sympy.log(x) / sympy.log(10),
    "log": lambda x: sympy.log(x) / sympy.log(10), "abs": sympy.Abs, "cbrt": lambda x: power(x, sympy.Rational(1, 3)),
    "cis": lambda x: sympy.cos(x) + sympy.I * sympy.sin(x), "Re": sympy.re, "Im": sympy.im, "arg": sympy.arg,
}  # fmt: skip


OF_SEVERAL: dict[str, Callable[..., Any]] = {
    "gcd": lambda *n: sympy.Integer(math.gcd(*map(_whole, n))),
    "lcm": lambda *n: sympy.Integer(math.lcm(*map(_whole, n))),
    "max": sympy.Max,
    "min": sympy.Min,
}


INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
