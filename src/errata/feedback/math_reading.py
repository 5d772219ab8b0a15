r"""A final answer read to its last token: a value with its unit, a tuple, a set, intervals, an equation, words, ...

:func:`readings` gives every way an answer can be meant (``100,200`` is one number or two); mostly there is one. What
cannot be read as a whole raises :class:`~errata.feedback.math_text.UnreadableError`: a part of it is no answer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import sympy

from errata.feedback.math_amounts import added, clock, feet_and_minutes, in_base, money, quantity, ratio
from errata.feedback.math_cuts import (
    INEQUALITIES,
    Read,
    Tokens,
    are_names,
    encloses,
    expression_or_none,
    is_sign,
    is_word,
    letters,
    name_of,
    nesting,
    split,
    top_level,
    unwrapped,
)
from errata.feedback.math_expression import expression
from errata.feedback.math_forms import (
    Cases,
    Dotted,
    Equation,
    Family,
    Group,
    Items,
    Matrix,
    Named,
    Pieces,
    Reading,
    Residue,
    Value,
    Words,
)
from errata.feedback.math_ranges import (
    bound_in_words,
    by_condition,
    constant_set,
    inequality,
    membership,
    shared,
    union,
    united,
)
from errata.feedback.math_text import UnreadableError, normalise, spell, tokenise
from errata.feedback.math_units import NO_UNIT, number_in_words

__all__ = ["read", "readings", "text_key"]


def readings(text: str) -> list[Reading]:
    """Every way to read an answer as a whole, the usual one first. Raises ``UnreadableError`` if there is none."""
    plain = normalise(text)
    if not plain:
        raise UnreadableError("it is empty")
    found: list[Reading] = []
    first_error: UnreadableError | None = None
    seen: list[Tokens] = []
    for thousands, powers in ((True, True), (False, True), (True, False), (False, False)):
        try:
            tokens = tokenise(plain, thousands=thousands, powers=powers)
            if tokens in seen:
                continue
            seen.append(tokens)
            found += [reading for meant in _options(tokens) if (reading := read(meant)) not in found]
        except UnreadableError as error:
            first_error = first_error or error
        except (TypeError, ValueError, RecursionError, OverflowError, ZeroDivisionError) as error:
            first_error = first_error or UnreadableError(f"it cannot be computed ({type(error).__name__})")
    if not found:
        assert first_error is not None
        raise first_error
    return found


def text_key(text: str) -> str:
    """A text without layout, to tell whether two answers that cannot be read are written alike."""
    try:
        return spell(unwrapped(tokenise(normalise(text), thousands=False, powers=False)))
    except UnreadableError:
        return " ".join(text.split())


def _options(tokens: Tokens) -> list[Tokens]:
    """``(C) 12`` of an examination is the letter or the number; else the tokens alone."""
    tokens = unwrapped(tokens)
    for start in (tokens, tokens[1:-1] if len(tokens) > 3 and encloses(tokens) and is_sign(tokens[0], "{") else []):
        if len(start) > 3 and is_sign(start[0], "(") and start[1].text in tuple("ABCDE") and is_sign(start[2], ")"):
            rest = start[3:]
            if rest[0].kind == "number" or is_sign(rest[0], "frac", "sqrt", "-", "$"):
                return [[start[1]], rest]
    for i, token in enumerate(tokens[:4]):
        if is_sign(token, "}") and i == 4 - 1:
            break
    head = [t.text for t in tokens[:5]]
    if len(tokens) > 5 and head[:2] == ["{", "("] and head[2] in "ABCDE" and head[3:] == [")", "}"]:
        return [[tokens[2]], tokens[5:]]
    return [tokens]


# -- The rules, in order: each returns a reading, or None for what is not its kind. --


def read(tokens: Tokens) -> Reading:
    """The reading of an answer's tokens by the first rule that knows its kind."""
    tokens = unwrapped(tokens)
    if not tokens:
        raise UnreadableError("it is empty")
    for rule in _RULES:
        reading = rule(tokens, read)
        if reading is not None:
            return reading
    raise AssertionError("the last rule reads or raises")


_LONGEST_PRODUCT = 12  # letters of a word that may be a product


_KNOWN_WORDS = frozenset(["yes", "no", "true", "false", "none", "both", "up", "zero"])


def words(tokens: Tokens, read: Read) -> Reading | None:
    r"""``\text{even}``, ``East``, ``five``, ``no real solutions``; ``abc`` may be a product too."""
    if not all(t.kind in ("word", "run", "letter") or is_sign(t, "-", "'", ".") for t in tokens):
        return None
    if not any(t.kind in ("word", "run") for t in tokens):
        return None
    text = " ".join(t.text for t in tokens if not is_sign(t, ".")).replace(" - ", "-").replace(" ' ", "'")
    if (number := number_in_words(text)) is not None:
        return Value(sympy.Integer(number))
    runs = [t for t in tokens if t.kind == "run"]
    if len(tokens) == 1 and runs:
        if len(text) < 3 and text.lower() not in _KNOWN_WORDS:
            return None
        return Words(text, expression(tokens) if len(text) <= _LONGEST_PRODUCT else None)
    if any(is_word(t, "and", "or") for t in tokens):
        return None
    if any(t.kind == "letter" and not t.upright and t.text not in "aAI" for t in tokens) and len(tokens) < 3:
        return None
    if len(tokens) == len(runs) == 0 or (
        any(is_sign(t, "-") for t in tokens) and not any(t.kind == "word" for t in tokens)
    ):
        return None
    return Words(_without_article(text))


def _without_article(text: str) -> str:
    return re.sub(r"^(?:an?|the)\s+(?=\w{2})", "", text, flags=re.IGNORECASE)


_SETS_OF_PARAMETERS = {"mathbb Z": "integers", "mathbb N": "naturals"}


def family(tokens: Tokens, read: Read) -> Reading | None:
    r"""``2k\pi, k\in\mathbb{Z}`` and ``2k\pi`` "for all integers k"."""
    at, parameter, numbers = _parameter(tokens)
    if not parameter:
        return None
    rest = tokens[:at]
    while rest and (
        (is_sign(rest[-1], ",", ";", "quad", "(", "forall", "where") and (not is_sign(rest[-1], "(") or not _balanced(rest)))
        or is_word(rest[-1], "for", "where", "with", "all", "any", "and", "every", "some")
    ):  # fmt: skip
        rest = rest[:-1]
    return Family(read(rest), parameter, numbers) if rest else None


def _balanced(tokens: Tokens) -> bool:
    return sum(map(nesting, tokens)) == 0


def _parameter(tokens: Tokens) -> tuple[int, str, str]:
    """Where a condition on a parameter begins, the parameter and its numbers; an empty parameter if there is none."""
    end = tokens[:-1] if len(tokens) > 4 and is_sign(tokens[-1], ")") else tokens
    if len(end) >= 4 and end[-3].kind == "letter" and is_sign(end[-2], "in") and end[-1].text in _SETS_OF_PARAMETERS:
        return len(end) - 3, end[-3].text, _SETS_OF_PARAMETERS[end[-1].text]
    tail = [t.text for t in end[-5:]]
    if (len(tail) == 5 and tail[2:] == ["is", "an", "integer"]) or tail[-3:] == ["is", "an", "integer"]:
        return len(end) - 4, end[-4].text, "integers"
    if len(end) > 3 and end[-1].kind == "letter" and is_word(end[-2], "integer", "integers"):
        return len(end) - 2, end[-1].text, "integers"
    return 0, "", ""


def plus_or_minus(tokens: Tokens, read: Read) -> Reading | None:
    r"""``1\pm\sqrt2`` is both values, as a set."""
    if not any(is_sign(t, "pm", "mp") for t in tokens):
        return None
    both = []
    for upper, lower in (("+", "-"), ("-", "+")):
        signs = {"pm": upper, "mp": lower}
        both.append(
            read([replace(t, kind="sign", text=signs[t.text]) if is_sign(t, "pm", "mp") else t for t in tokens])
        )
    if any(isinstance(r, Items | Named) for r in both):
        parts = [p for r in both for p in (r.items if isinstance(r, Items) else ())]
        return Items(tuple(_distinct(parts))) if parts and all(isinstance(r, Items) for r in both) else None
    names = {r.name for r in both if isinstance(r, Equation)}
    if len(names) == 1 and all(isinstance(r, Equation) for r in both):
        return Items(tuple(r.right for r in both if isinstance(r, Equation)), name=names.pop())
    return Items(tuple(both))


def _distinct(items: Sequence[Any]) -> list[Any]:
    return [item for i, item in enumerate(items) if item not in items[:i]]


def alternatives(tokens: Tokens, read: Read) -> Reading | None:
    """``x = 2 or x = 3``, ``3 and 5``, ``x < -1 or x > 1``."""
    parts, joints = split(tokens, lambda t: is_word(t, "or", "and"))
    if not joints or (len(parts) == 2 and not parts[1]):
        return None
    if len(joints) == 1 and is_word(joints[0], "and") and any(is_sign(t, ",", ";") for _, t in top_level(tokens)):
        return None  # '19, 46, and 82' is one list
    if all(part and is_sign(part[-1], ",") for part in parts[:-1]):
        parts = [part[:-1] if part and is_sign(part[-1], ",") else part for part in parts]
    read_parts = [read(part) for part in parts]
    amounts = [r for r in read_parts if isinstance(r, Value) and r.unit != NO_UNIT and not r.unit.counted]
    if len(amounts) == len(parts) == 2 and is_word(joints[0], "and") and _is_finer(amounts[1], amounts[0]):
        return added(*amounts)
    if all(isinstance(r, Pieces) for r in read_parts):
        pieces = [r for r in read_parts if isinstance(r, Pieces)]
        return united(pieces) if all(is_word(j, "or") for j in joints) else shared(pieces)
    return _collected(read_parts)


def _is_finer(small: Value, large: Value) -> bool:
    """Whether a unit continues a larger one, as in "2 hours and 15 minutes", one amount."""
    return small.unit.kind == large.unit.kind and small.unit.factor < large.unit.factor


def listed(tokens: Tokens, read: Read) -> Reading | None:
    r"""``1, 2, 3``, ``x = 1, y = 2``, ``1, 2, \ldots, 10``."""
    parts, joints = split(tokens, lambda t: is_sign(t, ",", ";"))
    if not joints:
        return None
    parts = [part[1:] if len(part) > 1 and is_word(part[0], "and", "or") else part for part in parts]
    parts = [p for part in parts for p in split(part, lambda t: is_word(t, "and"))[0]]
    return _of_parts(parts)


def _of_parts(parts: list[Tokens], *, braces: bool = False) -> Reading:
    if any(len(part) == 1 and is_sign(part[0], "ldots") for part in parts):
        return _dotted([None if len(p) == 1 and is_sign(p[0], "ldots") else read(p) for p in parts], braces)
    collected = _collected([read(part) for part in parts])
    return replace(collected, braces=braces) if isinstance(collected, Items) else collected


def _collected(parts: list[Reading]) -> Reading:
    """Several readings as one: equations of different names as ``Named``, of one name as its values, else as a set."""
    flat = [p for part in parts for p in (part.items if isinstance(part, Items) and not part.braces else (part,))]
    heads = [part.name for part in parts if isinstance(part, Equation) and part.name]
    if len(heads) == len(parts):
        rights = [part.right for part in parts if isinstance(part, Equation)]
        if len(set(heads)) == len(heads):
            return Named(tuple(zip(heads, rights, strict=True)))
        return Items(tuple(rights), name=heads[0]) if len(set(heads)) == 1 else Items(tuple(parts))
    if len(heads) == 1 and isinstance(parts[0], Equation) and all(isinstance(p, Value) for p in flat[1:]):
        return Items((parts[0].right, *flat[1:]), name=heads[0])
    return Items(tuple(flat))


def _dotted(items: list[Reading | None], braces: bool) -> Reading:
    """An arithmetic progression between given numbers is written out; any other list keeps its dots."""
    at = items.index(None)
    head = [i.expr for i in items[:at] if isinstance(i, Value) and i.expr.is_Rational]
    tail = [i.expr for i in items[at + 1 :] if isinstance(i, Value) and i.expr.is_Rational]
    if items.count(None) == 1 and len(head) == at >= 2 and len(tail) == len(items) - at - 1 >= 1:
        step = head[1] - head[0]
        steps = (tail[-1] - head[0]) / step if step else sympy.Rational(1, 2)
        regular = all(b - a == step for a, b in itertools.pairwise(head))
        regular = regular and all(b - a == step for a, b in itertools.pairwise(tail))
        if regular and steps.is_Integer and at <= steps <= 2000:
            return Items(tuple(Value(head[0] + n * step) for n in range(int(steps) + 1)), braces=braces)
    return Dotted(tuple(items), braces)


def residue(tokens: Tokens, read: Read) -> Reading | None:
    r"""``x \equiv 3 \pmod 7``, ``3 \pmod 7`` and ``3 (\bmod 7)``."""
    top = top_level(tokens)
    at = next((i for i, t in top if is_sign(t, "pmod")), None)
    inner = tokens
    if at is None and any(is_sign(t, "equiv") for _, t in top):
        at = next((i for i, t in enumerate(tokens) if is_sign(t, "bmod")), None)
        if at is None:
            raise UnreadableError("a congruence has no modulus")
        if is_sign(tokens[at - 1], "(") and is_sign(tokens[-1], ")"):
            inner = [*tokens[: at - 1], *tokens[at:-1]]
            at -= 1
    if at is None:
        return None
    value, modulus = inner[:at], inner[at + 1 :]
    parts, signs = split(value, lambda t: is_sign(t, "equiv", "="))
    if len(parts) > 2 or (signs and not name_of(parts[0])):
        raise UnreadableError("a congruence that is no name and its value")
    return Residue(expression(parts[-1]), expression(modulus))


def equation(tokens: Tokens, read: Read) -> Reading | None:
    """``x = 5``, ``y = 2x + 1``, ``m + n = 256 + 37 = 293``, ``(x, y) = (1, 2)``."""
    parts, signs = split(tokens, lambda t: is_sign(t, "=", "approx"))
    if not signs:
        return None
    if any(is_sign(t, "forall", "exists", *INEQUALITIES) for _, t in top_level(tokens)):
        raise UnreadableError("an equation beside another relation")
    first, last = parts[0], parts[-1]
    if not last:
        raise UnreadableError("an equation has no right side")
    if not first:
        return read(last)
    name = name_of(first)
    if are_names(first):
        return read(last)
    if not name and len(parts) == 2 and name_of(last) and not _has_symbols(first):
        name, first, last = name_of(last), last, first
    _refuse_contradiction(parts)
    if not name and len(parts) > 2 and not _has_symbols(first) and not _has_symbols(last):
        return read(last)
    if not name and len(parts) == 2 and not _has_symbols(first) and not _has_symbols(last):
        return read(last)
    left = expression_or_none(first)
    right = read(last)
    if left is None and not name:
        raise UnreadableError("the left side of the equation cannot be read")
    if name and isinstance(right, Value) and sympy.Symbol(name) in right.expr.free_symbols:
        name = ""
    return Equation(name, left, right)


def _has_symbols(tokens: Tokens) -> bool:
    found = expression_or_none(tokens)
    return found is None or bool(found.free_symbols)


def _refuse_contradiction(parts: list[Tokens]) -> None:
    """``2 + 2 = 5`` is no answer: the sides that are numbers have to be equal."""
    numbers = [v for p in parts if (v := expression_or_none(p)) is not None and not v.free_symbols]
    for a, b in itertools.pairwise(numbers):
        if a.is_finite and b.is_finite and abs((a - b).evalf(30)) > abs(b.evalf(30)) / 10**2 + sympy.Rational(1, 10**9):
            raise UnreadableError("the sides of the equation are not equal")
        if a.is_Rational and b.is_Rational and a != b and not any(is_sign(t, "approx") for p in parts for t in p):
            raise UnreadableError("the sides of the equation are not equal")


def matrix(tokens: Tokens, read: Read) -> Reading | None:
    r"""``\begin{pmatrix}...\end{pmatrix}``, of a ``vmatrix`` the determinant; by cases; a factor may stand before it."""
    begins = [i for i, t in enumerate(tokens) if t.text.startswith("begin ")]
    if len(begins) != 1 or not tokens[-1].text.startswith("end "):
        if begins:
            raise UnreadableError("more than one matrix, or more than a matrix")
        return None
    at = begins[0]
    kind = tokens[at].text.removeprefix("begin ")
    parts, _ = split(tokens[at + 1 : -1], lambda t: is_sign(t, "\\"))
    rows = [split(part, lambda t: is_sign(t, "&"))[0] for part in parts if part]
    if kind in ("cases", "array") and at == 0 and kind == "cases":
        return _by_cases(rows)
    if kind not in ("pmatrix", "bmatrix", "Bmatrix", "vmatrix", "matrix", "smallmatrix", "array"):
        raise UnreadableError(f"the environment {kind!r} is not known")
    factor = expression(tokens[:at]) if at else sympy.Integer(1)
    cells = tuple(tuple(factor * expression(cell) for cell in row) for row in rows)
    if not cells or any(len(row) != len(cells[0]) for row in cells):
        raise UnreadableError("the rows of a matrix are of different lengths")
    if kind == "vmatrix":
        if len(cells) != len(cells[0]) or len(cells) > 6:
            raise UnreadableError("a determinant of what is not square")
        return Value(
            factor * sympy.Matrix(cells).det() if at == 0 else expression(tokens[:at]) * sympy.Matrix(cells).det()
        )
    return Matrix(cells)


def _by_cases(rows: list[list[Tokens]]) -> Reading:
    rows = [[_without_comma(cell) for cell in row] for row in rows]
    if all(len(row) == 1 for row in rows):
        return _collected([read(row[0]) for row in rows])
    if any(len(row) != 2 or not all(row) for row in rows):
        raise UnreadableError("a case without a value and a condition")
    return Cases(tuple((read(value), _condition(when)) for value, when in rows))


def _without_comma(tokens: Tokens) -> Tokens:
    tokens = tokens[:-1] if tokens and is_sign(tokens[-1], ",", ".", ";") else tokens
    return tokens[1:] if tokens and is_word(tokens[0], "if", "for", "when") else tokens


def _condition(tokens: Tokens) -> Reading:
    return Words("otherwise") if letters(tokens) in (["otherwise"], ["else"]) else read(tokens)


def enclosed(tokens: Tokens, read: Read) -> Reading | None:
    r"""``(1,2)``, ``[0,1)``, ``\{1,2\}``, ``\langle 1,2\rangle``; brackets round one thing are nothing."""
    if not encloses(tokens) or not is_sign(tokens[0], "(", "[", "{", "langle"):
        return None
    inner = tokens[1:-1]
    if any(is_sign(t, "choose") for _, t in top_level(inner)):
        return None
    opens, closes = tokens[0].text, tokens[-1].text
    braces = opens == "{"
    if braces and not inner:
        return Words("\\emptyset")
    parts, joints = split(inner, lambda t: is_sign(t, ",", ";"))
    if not joints:
        if not inner:
            raise UnreadableError("a bracket holds nothing")
        if braces and any(is_sign(t, "|", ":") for _, t in top_level(inner)):
            return by_condition(inner, read)
        if {opens, closes} & {"langle", "rangle"} or (opens, closes) not in (("(", ")"), ("[", "]"), ("{", "}")):
            raise UnreadableError("brackets that hold one thing do not match")
        inside = read(inner)
        if braces:
            return Items(inside.items if isinstance(inside, Items) else (inside,), braces=True)
        return inside
    if braces:
        return _of_parts(parts, braces=True)
    if any(len(p) == 1 and is_sign(p[0], "ldots") for p in parts):
        return Group(
            tuple(Words("...") if len(p) == 1 and is_sign(p[0], "ldots") else read(p) for p in parts), opens, closes
        )
    ordinary = {"langle": "(", "rangle": ")"}
    return Group(tuple(read(part) for part in parts), ordinary.get(opens, opens), ordinary.get(closes, closes))


_RULES: tuple[Callable[[Tokens, Read], Reading | None], ...] = (
    clock, feet_and_minutes, in_base, words, bound_in_words, family, plus_or_minus, alternatives, listed, union, residue,
    membership, inequality, equation, constant_set, enclosed, matrix, ratio, money, quantity,
)  # fmt: skip
