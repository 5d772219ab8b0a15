"""Whether two expressions are equal: exactly for rational numbers, to many digits for others, at many points for formulas."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

__all__ = ["concrete", "proportional", "same_expression", "same_up_to_constant"]

_INFINITE = (sympy.oo, -sympy.oo, sympy.zoo)

_DIGITS = 50

_LARGEST_DIGITS = 3000

# -- Expressions --

# Points with all parts positive, where roots and logarithms of products split, and points with all kinds of parts;
# some inside and some outside the unit circle, so that a summand with a large power cannot vanish beside the others.
_POSITIVE = [(sympy.Rational(5 + (5 * i) % 12, 11), sympy.Rational(2 + i, 29)) for i in range(12)]

_MIXED = [
    (sympy.Rational((-1) ** i * (4 + (7 * i) % 12), 9), sympy.Rational((-1) ** (i // 2) * (3 + (5 * i) % 7), 8))
    for i in range(12)
]

_REAL = [(sympy.Rational((-1) ** i * (11 + 13 * i), 9), sympy.Integer(0)) for i in range(12)]


@lru_cache(maxsize=4096)
def same_expression(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether two expressions are equal: numbers to 50 digits beyond their size, formulas at complex points."""
    if a == b:
        return True
    if (a.is_Rational and b.is_Rational) or a.has(*_INFINITE) or b.has(*_INFINITE):
        return False
    if not a.free_symbols and not b.free_symbols and not (a.has(AppliedUndef) or b.has(AppliedUndef)):
        return _same_number(a, b)
    a, b = concrete(a), concrete(b)
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if a.has(sympy.Max, sympy.Min, sympy.floor, sympy.ceiling, sympy.Mod) or b.has(
        sympy.Max, sympy.Min, sympy.floor, sympy.ceiling, sympy.Mod
    ):
        return all(_same_at(a, b, _point(symbols, _REAL, (), k)) for k in range(0, 12, 2))
    positive = _implied_positive(a) | _implied_positive(b)
    return all(_same_at(a, b, _point(symbols, points, positive, k)) for points in (_POSITIVE, _MIXED) for k in range(2))


def _point(symbols: Sequence[Any], points: Sequence[Any], positive: Any, k: int) -> dict[Any, Any]:
    chosen = {}
    for i, symbol in enumerate(symbols):
        real, imaginary = (_POSITIVE if symbol in positive else points)[(5 * k + 3 * i + i // 4) % 12]
        chosen[symbol] = real + sympy.Rational(i // 4, 3) + sympy.I * imaginary
    return chosen


def _implied_positive(expr: sympy.Expr) -> set[Any]:
    r"""The symbols whose own logarithm or root is taken, as in ``\ln x`` or ``\sqrt x``."""
    logs = {log.args[0] for log in expr.atoms(sympy.log) if log.args[0].is_Symbol}
    roots = {p.base for p in expr.atoms(sympy.Pow) if p.base.is_Symbol and p.exp.is_Rational and p.exp.q > 1}
    return logs | roots


def concrete(expr: sympy.Expr) -> sympy.Expr:
    """Unknown functions as known ones, so that ``f(x + 1)`` is like itself only."""
    if not expr.has(AppliedUndef):
        return expr

    def known(call: Any) -> Any:
        seed = sum(ord(c) * 31**i for i, c in enumerate(call.func.__name__)) % 97
        parts = [sympy.Rational(seed + 3 + 7 * i, 89) * arg for i, arg in enumerate(call.args)]
        return sympy.sin(sympy.Add(*parts) + sympy.Rational(seed + 1, 13)) + sympy.Rational(seed, 7)

    return expr.replace(lambda e: isinstance(e, AppliedUndef), known)


def _same_number(a: sympy.Expr, b: sympy.Expr) -> bool:
    extra = max(_spread(a), _spread(b))
    return extra <= _LARGEST_DIGITS and _close(a, b, {}, _DIGITS + extra)


def _spread(expr: sympy.Expr) -> int:
    """The decimal digits between 1 and the largest or smallest part of a number: 87 of ``1 - e^{-200}``."""
    parts = [part for i, part in enumerate(sympy.preorder_traversal(expr)) if i < 80 and part.is_number]
    return max((_magnitude(part.evalf(8)) for part in parts), default=0)


def _magnitude(value: sympy.Expr) -> int:
    size = abs(value)
    if not size.is_number or size == 0 or not size.is_finite:
        return 0
    return abs(int(sympy.log(size, 10).evalf(5)))


def _same_at(a: sympy.Expr, b: sympy.Expr, point: dict[Any, Any]) -> bool:
    return _close(a, b, point, _DIGITS)


def _close(a: sympy.Expr, b: sympy.Expr, point: dict[Any, Any], digits: int) -> bool:
    x, y = (v.evalf(digits + 10, subs=point, maxn=4 * digits + 400) for v in (a, b))
    if not (x.is_number and y.is_number) or x.has(sympy.nan, sympy.zoo) or y.has(sympy.nan, sympy.zoo):
        return False
    size = max(abs(x), abs(y))
    if point and digits == _DIGITS and (extra := _magnitude(size)) > 8:
        close = abs(x - y) <= size * sympy.Float(10) ** -digits  # what differs now does not need more digits
        return bool(close) and extra <= _LARGEST_DIGITS and _close(a, b, point, digits + extra)
    if size < sympy.Float(10) ** -(2 * digits):  # both vanish, or one is so small that only a sign tells
        return bool(sympy.Abs(x - y) <= size * sympy.Float(10) ** -10) or (_vanishes(a, point) and _vanishes(b, point))
    return bool(abs(x - y) <= size * sympy.Float(10) ** -digits)


def _vanishes(expr: sympy.Expr, point: dict[Any, Any]) -> bool:
    return expr == 0 or bool(sympy.simplify(expr.subs(point)) == 0)


_CONSTANTS = [sympy.Symbol(name) for name in ("C", "c", "K", "k", "C_1", "c_1", "C_0")]


def same_up_to_constant(gold: sympy.Expr, given: sympy.Expr) -> bool:
    """``x^3/3 + C`` and ``x^3/3 + c``: both have a constant of integration, which takes up any other."""
    if sympy.Symbol("C") not in gold.free_symbols or len(gold.free_symbols) < 2:
        return False
    theirs = [c for c in _CONSTANTS if c in given.free_symbols]
    if len(theirs) != 1:
        return False
    ours = sympy.Symbol("C")
    rests = [gold - ours, given - theirs[0]]
    if any(c in rest.free_symbols for c, rest in zip((ours, theirs[0]), rests, strict=True)):
        return False
    gap = rests[0] - rests[1]
    if not gap.free_symbols:
        return True
    symbols = sorted(gap.free_symbols, key=str)
    values = [gap.evalf(30, subs=_point(symbols, points, (), k)) for points in (_POSITIVE, _MIXED) for k in range(2)]
    return all(v.is_number and abs(v - values[0]) < sympy.Float(10) ** -20 for v in values)


def proportional(a: sympy.Expr, b: sympy.Expr, *, positive: bool = False) -> bool:
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if not symbols or b == 0:
        return False
    factors = []
    for points in (_POSITIVE, _MIXED):
        for k in range(3):
            point = _point(symbols, points, (), k)
            below = b.evalf(_DIGITS, subs=point)
            if not below.is_number or abs(below) < sympy.Float(10) ** -20:
                return False
            factors.append(a.evalf(_DIGITS, subs=point) / below)
    first = factors[0]
    if not first.is_number or abs(first) < sympy.Float(10) ** -20:
        return False
    if not all(abs(f - first) <= abs(first) * sympy.Float(10) ** -30 for f in factors):
        return False
    real = abs(sympy.im(first)) < sympy.Float(10) ** -30
    return bool(real and (not positive or sympy.re(first) > 0))
