"""Whether two readings of an answer mean the same, part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy

from errata.feedback.math_forms import (
    Cases,
    Clock,
    Dotted,
    Equation,
    Family,
    Group,
    Items,
    Matrix,
    Named,
    Pieces,
    Ratio,
    Reading,
    Relation,
    Residue,
    Value,
    Words,
)
from errata.feedback.math_numbers import concrete, proportional, same_expression, same_up_to_constant
from errata.feedback.math_ranges import as_pieces
from errata.feedback.math_units import NO_UNIT, Unit

__all__ = ["agree", "is_decimal", "nearly"]


def agree(gold: Reading, given: Reading) -> str:
    """The rule by which ``given`` is the right answer ``gold``; empty if it is not."""
    for rule, test in _RULES:
        verdict = test(gold, given)
        if verdict is not None:
            return rule if verdict else ""
    return ""


def _all(gold: Sequence[Reading | None], given: Sequence[Reading | None]) -> bool:
    return len(gold) == len(given) and all(
        (a is b is None) or (a is not None and b is not None and bool(agree(a, b)))
        for a, b in zip(gold, given, strict=True)
    )


def is_decimal(value: Value) -> bool:
    """Whether it is a number with digits behind the point that end: 0.333, not 1/3 nor 2."""
    number = value.expr
    return bool(number.is_Rational and number.q != 1 and 10**100 % number.q == 0)


def nearly(gold: Reading, given: Reading) -> bool:
    """Whether ``given`` is a number close to ``gold``, and has digits behind the point or is a fraction."""
    if not (isinstance(gold, Value) and isinstance(given, Value)) or gold.expr.free_symbols or given.expr.free_symbols:
        return False
    if not (gold.expr.is_finite and given.expr.is_Rational):
        return False
    a, b = gold.expr.evalf(20), given.expr.evalf(20)
    return bool(a != 0 and given.expr.q != 1 and abs(a - b) <= abs(a) / 100)


# -- Values with units --


def _values(gold: Reading, given: Reading) -> bool | None:
    if not (isinstance(gold, Value) and isinstance(given, Value)):
        return None
    if same_expression(gold.expr, given.expr) and _same_unit(gold.unit, given.unit, gold.expr):
        return True
    if gold.unit.kind == given.unit.kind != "":
        return gold.unit.factor != given.unit.factor and _scaled(gold, given)
    if {gold.unit.kind, given.unit.kind} == {"°1", ""} or {gold.unit.kind, given.unit.kind} == {"°1", "rad1"}:
        return same_expression(_radians(gold), _radians(given))
    if {gold.unit.kind, given.unit.kind} == {"%1", ""}:
        return same_expression(_share(gold), _share(given))
    if NO_UNIT not in (gold.unit, given.unit):
        return False
    return same_up_to_constant(gold.expr, given.expr)


def _same_unit(gold: Unit, given: Unit, number: sympy.Expr) -> bool:
    """A unit may be left out, but not be another one; a small number of per cent is no plain number."""
    if gold == given or (gold.counted and given.counted and gold.kind == given.kind):
        return True
    if NO_UNIT not in (gold, given):
        return False
    return "%1" not in (gold.kind, given.kind) or number == 0 or bool(abs(number) >= 1)


def _scaled(gold: Value, given: Value) -> bool:
    return same_expression(
        gold.expr * sympy.Rational(gold.unit.factor.numerator, gold.unit.factor.denominator),
        given.expr * sympy.Rational(given.unit.factor.numerator, given.unit.factor.denominator),
    )


def _radians(value: Value) -> sympy.Expr:
    return value.expr * sympy.pi / 180 if value.unit.kind == "°1" else value.expr


def _share(value: Value) -> sympy.Expr:
    return value.expr / 100 if value.unit.kind == "%1" else value.expr


# -- Words, times, ratios --


def _words(gold: Reading, given: Reading) -> bool | None:
    if isinstance(gold, Words) and isinstance(given, Words):
        a, b = (_EQUAL_WORDS.get(" ".join(w.text.lower().split()), w.text) for w in (gold, given))
        return a == b or (a.lower() == b.lower() and _only_a_spelling(a, b))
    if isinstance(gold, Words) and gold.expr is not None and isinstance(given, Value) and given.unit == NO_UNIT:
        return same_expression(gold.expr, given.expr)
    if isinstance(given, Words) and given.expr is not None and isinstance(gold, Value) and gold.unit == NO_UNIT:
        return same_expression(gold.expr, given.expr)
    return None


_NOTHING = ("no solution", "no solutions", "no real solution", "no real solutions", "empty set", "empty", "\\emptyset")


_EQUAL_WORDS = dict.fromkeys(_NOTHING, "\\emptyset") | {"real": "\\mathbb R"}


_SHORT_WORDS = frozenset(
    [
        "yes",
        "no",
        "true",
        "false",
        "none",
        "both",
        "even",
        "odd",
        "up",
        "down",
        "left",
        "right",
        "east",
        "west",
        "zero",
        "one",
        "two",
        "all",
    ]
)


def _only_a_spelling(a: str, b: str) -> bool:
    """Whether capital letters make no difference: they do for the names of points, ``ABC``."""
    if a.lower() in _SHORT_WORDS:
        return True
    return not any(t.isupper() and len(t) <= 4 and " " not in t for t in (a, b))


def _clocks(gold: Reading, given: Reading) -> bool | None:
    if isinstance(gold, Clock) and isinstance(given, Clock):
        return gold.text == given.text
    if isinstance(gold, Clock) and gold.ratio is not None and isinstance(given, Ratio):
        return _same_ratio(gold.ratio, given)
    if isinstance(given, Clock) and given.ratio is not None and isinstance(gold, Ratio):
        return _same_ratio(gold, given.ratio)
    return None


def _ratios(gold: Reading, given: Reading) -> bool | None:
    if isinstance(gold, Ratio) and isinstance(given, Ratio):
        return _same_ratio(gold, given)
    for ratio, value in ((gold, given), (given, gold)):
        if isinstance(ratio, Ratio) and isinstance(value, Value) and len(ratio.parts) == 2 and ratio.parts[1] != 0:
            return value.unit == NO_UNIT and same_expression(ratio.parts[0] / ratio.parts[1], value.expr)
    return None


def _same_ratio(gold: Ratio, given: Ratio) -> bool:
    if len(gold.parts) != len(given.parts) or 0 in given.parts or 0 in gold.parts:
        return False
    first = gold.parts[0] / given.parts[0]
    return all(same_expression(a, first * b) for a, b in zip(gold.parts, given.parts, strict=True))


def _residues(gold: Reading, given: Reading) -> bool | None:
    if isinstance(gold, Residue) and isinstance(given, Residue):
        same = same_expression(gold.modulus, given.modulus)
        gap = gold.value - given.value
        return same and (
            bool(gap % gold.modulus == 0)
            if gap.is_Integer and gold.modulus.is_Integer
            else same_expression(gold.value, given.value)
        )
    for one, other in ((gold, given), (given, gold)):
        if isinstance(one, Residue):
            return isinstance(other, Value) and same_expression(one.value, other.expr)
    return None


# -- Several parts --


def _groups(gold: Reading, given: Reading) -> bool | None:
    if not (isinstance(gold, Group) and isinstance(given, Group)):
        return None
    return (gold.open, gold.close) == (given.open, given.close) and _all(gold.items, given.items)


def _intervals(gold: Reading, given: Reading) -> bool | None:
    if not (isinstance(gold, Pieces) or isinstance(given, Pieces)):
        return None
    a, b = as_pieces(gold), as_pieces(given)
    if a is None or b is None:
        return False
    if a.variable and b.variable and a.variable != b.variable:
        return False
    return _matched(a.parts, b.parts, _same_interval)


def _same_interval(a: Any, b: Any) -> bool:
    return (a[1], a[3]) == (b[1], b[3]) and same_expression(a[0], b[0]) and same_expression(a[2], b[2])


def _matched(gold: Sequence[Any], given: Sequence[Any], same: Callable[[Any, Any], Any]) -> bool:
    """Whether each of ``given`` is a different one of ``gold``, and none is left over."""
    if len(gold) != len(given) or len(gold) > 60:
        return len(gold) == len(given) and all(same(a, b) for a, b in zip(gold, given, strict=True))
    left = list(gold)
    for item in given:
        at = next((i for i, one in enumerate(left) if same(one, item)), None)
        if at is None:
            return False
        left.pop(at)
    return True


def _sets(gold: Reading, given: Reading) -> bool | None:
    if isinstance(gold, Items) and isinstance(given, Items):
        if gold.name and given.name and not _same_name(gold.name, given.name):
            return False
        if _counted(gold) != _counted(given):  # without the things that are counted only the order tells them apart
            return _all(gold.items, given.items)
        return _matched(gold.items, given.items, agree)
    return None


def _counted(items: Items) -> bool:
    """Whether the items count different things: ``3 apples and 2 pears``."""
    return len({item.unit for item in items.items if isinstance(item, Value)}) > 1


def _lists(gold: Reading, given: Reading) -> bool | None:
    """A tuple without its brackets, and what stands for a list of one."""
    if isinstance(gold, Group) and isinstance(given, Items) and not given.braces and gold.open in "([":
        return len(gold.items) == len(given.items) and gold.open == "(" and _all(gold.items, given.items)
    if isinstance(gold, Items) and isinstance(given, Group) and not gold.braces:
        whole = (given.open, given.close) in (("(", ")"), ("[", "]"))
        return whole and len(gold.items) > 1 and _all(gold.items, given.items)
    if isinstance(gold, Items) and len(gold.items) == 1 and gold.braces and not isinstance(given, Items):
        return bool(agree(gold.items[0], given))  # the braces of a set of one are left out
    return None


def _dots(gold: Reading, given: Reading) -> bool | None:
    if not (isinstance(gold, Dotted) and isinstance(given, Dotted)):
        return None
    return _all(gold.items, given.items)


def _matrices(gold: Reading, given: Reading) -> bool | None:
    if isinstance(gold, Matrix) and isinstance(given, Matrix):
        return [len(r) for r in gold.rows] == [len(r) for r in given.rows] and all(
            same_expression(a, b) for r, s in zip(gold.rows, given.rows, strict=True) for a, b in zip(r, s, strict=True)
        )
    for matrix, other in ((gold, given), (given, gold)):
        if isinstance(matrix, Matrix) and isinstance(other, Group):
            cells = [cell for row in matrix.rows for cell in row]
            vector = all(len(row) == 1 for row in matrix.rows) or len(matrix.rows) == 1
            return vector and other.open == "(" and _all([Value(c) for c in cells], other.items)
        if isinstance(matrix, Matrix) and isinstance(other, Value):
            identity = matrix.rows == tuple(tuple(sympy.eye(len(matrix.rows)).row(i)) for i in range(len(matrix.rows)))
            names = ("I", f"I_{len(matrix.rows)}", "E", f"E_{len(matrix.rows)}")
            return identity and str(other.expr) in names
    return None


def _cases(gold: Reading, given: Reading) -> bool | None:
    if not (isinstance(gold, Cases) and isinstance(given, Cases)):
        return None
    return _matched(gold.rows, given.rows, lambda a, b: bool(agree(a[0], b[0]) and agree(a[1], b[1])))


# -- Names, equations, relations --


def _named(gold: Reading, given: Reading) -> bool | None:
    if isinstance(gold, Named) and isinstance(given, Named):
        return _matched(gold.values, given.values, lambda a, b: a[0] == b[0] and bool(agree(a[1], b[1])))
    for names, other, turned in ((gold, given, False), (given, gold, True)):
        if not isinstance(names, Named):
            continue
        if isinstance(other, Group) and other.open == "(":
            ordered = [value for _, value in sorted(names.values, key=lambda v: v[0])]
            return _all(other.items, ordered) if turned else _all(ordered, other.items)
        indexed = len({name.partition("_")[0] for name, _ in names.values}) == 1
        if isinstance(other, Items) and (indexed or not other.braces):
            values = [value for _, value in names.values]
            if indexed:
                return _matched(other.items, values, agree) if turned else _matched(values, other.items, agree)
            return _all(other.items, values) if turned else _all(values, other.items)
        if isinstance(other, Matrix) and all(len(row) == 1 for row in other.rows):
            ordered = [value for _, value in sorted(names.values, key=lambda v: v[0])]
            return _all(ordered, [Value(row[0]) for row in other.rows])
    return None


def _equations(gold: Reading, given: Reading) -> bool | None:
    if isinstance(gold, Equation) and isinstance(given, Equation):
        if gold.name and given.name:
            if _same_name(gold.name, given.name):
                if agree(gold.right, given.right):
                    return True
            elif "(" in gold.name + given.name or "_" in gold.name + given.name:
                return False
        return _same_curve(gold, given)
    for one, other, turned in ((gold, given, False), (given, gold, True)):
        if isinstance(one, Equation):
            if not one.name:
                return False
            if isinstance(one.right, Value) and isinstance(other, Value) and _is_condition(one, other):
                return False
            return bool(agree(other, one.right) if turned else agree(one.right, other))
    return None


def _is_condition(equation: Equation, other: Value) -> bool:
    """``m + n = 5`` names a sum, but ``x + y = z`` is a relation."""
    return "+" in equation.name and isinstance(equation.right, Value) and bool(equation.right.expr.free_symbols)


def _same_name(gold: str, given: str) -> bool:
    """``y`` and ``f(x)`` both name a function of ``x``."""
    return gold == given or {gold, given} == {"y", "f(x)"}


def _same_curve(gold: Equation, given: Equation) -> bool:
    """Whether the sides' differences are multiples of each other: ``y = 2x + 1`` and ``2x - y + 1 = 0``."""
    gaps = []
    for equation in (gold, given):
        if equation.left is None or not isinstance(equation.right, Value) or equation.right.unit != NO_UNIT:
            return False
        gaps.append(concrete(equation.left - equation.right.expr))
    return gaps[0].free_symbols == gaps[1].free_symbols and proportional(*gaps)


def _relations(gold: Reading, given: Reading) -> bool | None:
    if not (isinstance(gold, Relation) and isinstance(given, Relation)):
        return None
    return gold.sign == given.sign and proportional(gold.difference, given.difference, positive=gold.sign != "neq")


def _families(gold: Reading, given: Reading) -> bool | None:
    if not (isinstance(gold, Family) or isinstance(given, Family)):
        return None
    inner = [r.reading if isinstance(r, Family) else r for r in (gold, given)]
    kinds = [r.numbers for r in (gold, given) if isinstance(r, Family)]
    if len(set(kinds)) > 1:
        return False
    if isinstance(gold, Family) and isinstance(given, Family):
        inner[1] = _renamed(inner[1], given.parameter, gold.parameter)
    if agree(inner[0], inner[1]):
        return True
    values = [r.right if isinstance(r, Equation) else r for r in inner]
    if not (isinstance(gold, Family) and gold.numbers == "integers" and all(isinstance(v, Value) for v in values)):
        return False
    return _same_progression(values[0], values[1], sympy.Symbol(gold.parameter))


def _renamed(reading: Reading, old: str, new: str) -> Reading:
    if isinstance(reading, Value):
        return Value(reading.expr.subs(sympy.Symbol(old), sympy.Symbol(new)), reading.unit)
    if isinstance(reading, Equation):
        return Equation(reading.name, reading.left, _renamed(reading.right, old, new))
    if isinstance(reading, Items):
        return Items(tuple(_renamed(i, old, new) for i in reading.items), reading.braces, reading.name)
    return reading


def _same_progression(gold: Any, given: Any, k: sympy.Symbol) -> bool:
    r"""``\pi/4 + k\pi`` and ``5\pi/4 + k\pi`` for all integers ``k``."""
    steps = [v.expr.diff(k) for v in (gold, given)]
    if any(s.free_symbols or s == 0 for s in steps) or not (
        same_expression(steps[0], steps[1]) or same_expression(steps[0], -steps[1])
    ):
        return False
    shift = sympy.nsimplify(sympy.simplify((gold.expr.subs(k, 0) - given.expr.subs(k, 0)) / steps[0]))
    return bool(shift.is_Integer)


_RULES: tuple[tuple[str, Callable[[Reading, Reading], bool | None]], ...] = (
    ("values for all of a parameter", _families),
    ("the same value", _values),
    ("the same words", _words),
    ("the same time or date", _clocks),
    ("the same ratio", _ratios),
    ("the same residue", _residues),
    ("the same equation", _equations),
    ("the same relation", _relations),
    ("the same values of the names", _named),
    ("the same in order", _groups),
    ("the same intervals", _intervals),
    ("the same matrix", _matrices),
    ("the same cases", _cases),
    ("the same list with dots", _dots),
    ("the same list", _lists),
    ("the same set", _sets),
)
