r"""A final answer read to its last token: a value with its unit, a tuple, a set, intervals, an equation, words, ...

:func:`readings` gives every way an answer can be meant (``100,200`` is one number or two); mostly there is one. What
cannot be read as a whole raises :class:`~errata.feedback.math_text.UnreadableError`: a part of it is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import sympy

from errata.feedback.math_expression import expression
from errata.feedback.math_text import Token, UnreadableError, normalise, spell, tokenise
from errata.feedback.math_units import NO_UNIT, Unit, is_unit_name, number_in_words, unit

__all__ = [
    "Cases", "Clock", "Dotted", "Equation", "Family", "Group", "Items", "Matrix", "Named", "Pieces", "Ratio",
    "Reading", "Relation", "Residue", "Value", "Words", "readings", "text_key",
]  # fmt: skip


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
Tokens = list[Token]


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
        return spell(_unwrapped(tokenise(normalise(text), thousands=False, powers=False)))
    except UnreadableError:
        return " ".join(text.split())


# -- Helpers on tokens --

_OPEN = frozenset(("(", "[", "{", "langle", "lfloor", "lceil"))
_CLOSE = frozenset((")", "]", "}", "rangle", "rfloor", "rceil"))


def _step(token: Token) -> int:
    if token.kind not in ("sign", "command"):
        return 0
    return (token.text in _OPEN or token.text.startswith("begin ")) - (
        token.text in _CLOSE or token.text.startswith("end ")
    )


def _top_level(tokens: Tokens) -> list[tuple[int, Token]]:
    """The tokens outside all brackets, with their positions."""
    depth, found = 0, []
    for i, token in enumerate(tokens):
        step = _step(token)
        if depth == 0 and step == 0:
            found.append((i, token))
        depth += step
        if depth < 0:
            raise UnreadableError(f"{token.text!r} closes nothing")
    if depth:
        raise UnreadableError("a bracket is not closed")
    return found


def _split(tokens: Tokens, where: Callable[[Token], bool]) -> tuple[list[Tokens], list[Token]]:
    """The parts between the top-level tokens that ``where`` picks, and those tokens."""
    cuts = [i for i, token in _top_level(tokens) if where(token)]
    edges = [-1, *cuts, len(tokens)]
    return [tokens[a + 1 : b] for a, b in zip(edges, edges[1:], strict=False)], [tokens[i] for i in cuts]


def _encloses(tokens: Tokens) -> bool:
    """Whether the first token opens a bracket that only the last one closes."""
    if len(tokens) < 2 or _step(tokens[0]) != 1:
        return False
    depth = 0
    for i, token in enumerate(tokens):
        depth += _step(token)
        if depth == 0:
            return i == len(tokens) - 1
    return False


def _is(token: Token, *texts: str) -> bool:
    return token.kind in ("sign", "command") and token.text in texts


def _is_word(token: Token, *texts: str) -> bool:
    return token.kind in ("word", "run") and token.text.lower() in texts


def _letters(tokens: Tokens) -> list[str]:
    return [t.text.lower() for t in tokens if t.kind in ("word", "run", "letter")]


# -- What is taken off before reading --

_FILLERS = frozenset(
    "the final answer is ans about approximately approx exactly roughly around solution solutions are result value "
    "equals so therefore thus hence correct nearly only".split()
)
_ROWS = ("aligned", "align", "gathered", "split", "gather", "equation", "alignedat", "eqnarray", "array", "multline")


def _unwrapped(tokens: Tokens) -> Tokens:
    """Without braces, alignment, Markdown's stars and words such as "the answer is" around the answer."""
    while True:
        before = tokens
        if _encloses(tokens) and _is(tokens[0], "{") and tokens[0].kind == "sign":
            inner = tokens[1:-1]
            if inner and not any(_is(t, ",", "choose") for _, t in _top_level(inner)):
                tokens = inner
        if tokens and tokens[0].text.removeprefix("begin ") in _ROWS[:-2] and _encloses(tokens):
            tokens = _joined_rows(tokens[1:-1])
        while tokens and len(tokens) > 1 and _is_word(tokens[0], *_FILLERS):
            tokens = tokens[1:]
        if tokens and tokens != before and _is(tokens[0], ":", "="):
            tokens = tokens[1:]
        if len(tokens) > 1 and _is(tokens[0], "approx", "sim", "therefore"):
            tokens = tokens[1:]
        if len(tokens) > 1 and _is(tokens[-1], "."):
            tokens = tokens[:-1]
        if tokens == before:
            return tokens


def _joined_rows(tokens: Tokens) -> Tokens:
    """Aligned rows as one line; a row that does not begin with a relation is a further equation."""
    parts, _ = _split(tokens, lambda t: _is(t, "\\"))
    rows = [[t for t in part if not _is(t, "&")] for part in parts]
    line: Tokens = []
    for row in filter(None, rows):
        if line and not _is(row[0], *_RELATIONS):
            line.append(Token("sign", ","))
        line += row
    return line


def _options(tokens: Tokens) -> list[Tokens]:
    """``(C) 12`` of an examination is the letter or the number; else the tokens alone."""
    tokens = _unwrapped(tokens)
    for start in (tokens, tokens[1:-1] if len(tokens) > 3 and _encloses(tokens) and _is(tokens[0], "{") else []):
        if len(start) > 3 and _is(start[0], "(") and start[1].text in tuple("ABCDE") and _is(start[2], ")"):
            rest = start[3:]
            if rest[0].kind == "number" or _is(rest[0], "frac", "sqrt", "-", "$"):
                return [[start[1]], rest]
    for i, token in enumerate(tokens[:4]):
        if _is(token, "}") and i == 4 - 1:
            break
    head = [t.text for t in tokens[:5]]
    if len(tokens) > 5 and head[:2] == ["{", "("] and head[2] in "ABCDE" and head[3:] == [")", "}"]:
        return [[tokens[2]], tokens[5:]]
    return [tokens]


# -- The rules, in order: each returns a reading, or None for what is not its kind. --


def read(tokens: Tokens) -> Reading:
    """The reading of an answer's tokens by the first rule that knows its kind."""
    tokens = _unwrapped(tokens)
    if not tokens:
        raise UnreadableError("it is empty")
    for rule in _RULES:
        reading = rule(tokens)
        if reading is not None:
            return reading
    raise AssertionError("the last rule reads or raises")


_LONGEST_PRODUCT = 12  # letters of a word that may be a product
_KNOWN_WORDS = frozenset("yes no true false none both up zero".split())


def clock(tokens: Tokens) -> Reading | None:
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


def words(tokens: Tokens) -> Reading | None:
    r"""``\text{even}``, ``East``, ``five``, ``no real solutions``; ``abc`` may be a product too."""
    if not all(t.kind in ("word", "run", "letter") or _is(t, "-", "'", ".") for t in tokens):
        return None
    if not any(t.kind in ("word", "run") for t in tokens):
        return None
    text = " ".join(t.text for t in tokens if not _is(t, ".")).replace(" - ", "-").replace(" ' ", "'")
    if (number := number_in_words(text)) is not None:
        return Value(sympy.Integer(number))
    runs = [t for t in tokens if t.kind == "run"]
    if len(tokens) == 1 and runs:
        if len(text) < 3 and text.lower() not in _KNOWN_WORDS:
            return None
        return Words(text, expression(tokens) if len(text) <= _LONGEST_PRODUCT else None)
    if any(_is_word(t, "and", "or") for t in tokens):
        return None
    if any(t.kind == "letter" and not t.upright and t.text not in "aAI" for t in tokens) and len(tokens) < 3:
        return None
    if len(tokens) == len(runs) == 0 or (
        any(_is(t, "-") for t in tokens) and not any(t.kind == "word" for t in tokens)
    ):
        return None
    return Words(_without_article(text))


def _without_article(text: str) -> str:
    return re.sub(r"^(?:an?|the)\s+(?=\w{2})", "", text, flags=re.IGNORECASE)


def bound_in_words(tokens: Tokens) -> Reading | None:
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
            return _interval(sign, rest.expr, "") if isinstance(rest, Value) else None
    return None


_SETS_OF_PARAMETERS = {"mathbb Z": "integers", "mathbb N": "naturals"}


def family(tokens: Tokens) -> Reading | None:
    r"""``2k\pi, k\in\mathbb{Z}`` and ``2k\pi`` "for all integers k"."""
    at, parameter, numbers = _parameter(tokens)
    if not parameter:
        return None
    rest = tokens[:at]
    while rest and (
        _is(rest[-1], ",", ";", "quad", "(", "forall", "where") and (not _is(rest[-1], "(") or not _balanced(rest))
        or _is_word(rest[-1], "for", "where", "with", "all", "any", "and", "every", "some")
    ):  # fmt: skip
        rest = rest[:-1]
    return Family(read(rest), parameter, numbers) if rest else None


def _balanced(tokens: Tokens) -> bool:
    return sum(map(_step, tokens)) == 0


def _parameter(tokens: Tokens) -> tuple[int, str, str]:
    """Where a condition on a parameter begins, the parameter and its numbers; an empty parameter if there is none."""
    end = tokens[:-1] if len(tokens) > 4 and _is(tokens[-1], ")") else tokens
    if len(end) >= 4 and end[-3].kind == "letter" and _is(end[-2], "in") and end[-1].text in _SETS_OF_PARAMETERS:
        return len(end) - 3, end[-3].text, _SETS_OF_PARAMETERS[end[-1].text]
    tail = [t.text for t in end[-5:]]
    if len(tail) == 5 and tail[2:] == ["is", "an", "integer"] or tail[-3:] == ["is", "an", "integer"]:
        return len(end) - 4, end[-4].text, "integers"
    if len(end) > 3 and end[-1].kind == "letter" and _is_word(end[-2], "integer", "integers"):
        return len(end) - 2, end[-1].text, "integers"
    return 0, "", ""


def plus_or_minus(tokens: Tokens) -> Reading | None:
    r"""``1\pm\sqrt2`` is both values, as a set."""
    if not any(_is(t, "pm", "mp") for t in tokens):
        return None
    both = []
    for upper, lower in (("+", "-"), ("-", "+")):
        signs = {"pm": upper, "mp": lower}
        both.append(read([replace(t, kind="sign", text=signs[t.text]) if _is(t, "pm", "mp") else t for t in tokens]))
    if any(isinstance(r, Items | Named) for r in both):
        parts = [p for r in both for p in (r.items if isinstance(r, Items) else ())]
        return Items(tuple(_distinct(parts))) if parts and all(isinstance(r, Items) for r in both) else None
    names = {r.name for r in both if isinstance(r, Equation)}
    if len(names) == 1 and all(isinstance(r, Equation) for r in both):
        return Items(tuple(r.right for r in both if isinstance(r, Equation)), name=names.pop())
    return Items(tuple(both))


def _distinct(items: Sequence[Any]) -> list[Any]:
    return [item for i, item in enumerate(items) if item not in items[:i]]


def alternatives(tokens: Tokens) -> Reading | None:
    """``x = 2 or x = 3``, ``3 and 5``, ``x < -1 or x > 1``."""
    parts, joints = _split(tokens, lambda t: _is_word(t, "or", "and"))
    if not joints or (len(parts) == 2 and not parts[1]):
        return None
    if any(_is_word(j, "and") for j in joints) and any(_is(t, ",", ";") for _, t in _top_level(tokens)):
        if all(_is_word(j, "and") for j in joints) and len(joints) == 1:
            return None  # '19, 46, and 82' is one list
    if all(part and _is(part[-1], ",") for part in parts[:-1]):
        parts = [part[:-1] if part and _is(part[-1], ",") else part for part in parts]
    read_parts = [read(part) for part in parts]
    amounts = [r for r in read_parts if isinstance(r, Value) and r.unit != NO_UNIT and not r.unit.counted]
    if len(amounts) == len(parts) == 2 and _is_word(joints[0], "and") and len({a.unit.kind for a in amounts}) == 1:
        if amounts[0].unit.factor > amounts[1].unit.factor:  # '2 hours and 15 minutes' is one amount
            return _added(*amounts)
    if all(isinstance(r, Pieces) for r in read_parts):
        pieces = [r for r in read_parts if isinstance(r, Pieces)]
        return _union(pieces) if all(_is_word(j, "or") for j in joints) else _intersection(pieces)
    return _collected(read_parts)


def listed(tokens: Tokens) -> Reading | None:
    r"""``1, 2, 3``, ``x = 1, y = 2``, ``1, 2, \ldots, 10``."""
    parts, joints = _split(tokens, lambda t: _is(t, ",", ";"))
    if not joints:
        return None
    parts = [part[1:] if len(part) > 1 and _is_word(part[0], "and", "or") else part for part in parts]
    parts = [p for part in parts for p in _split(part, lambda t: _is_word(t, "and"))[0]]
    return _of_parts(parts)


def _of_parts(parts: list[Tokens], *, braces: bool = False) -> Reading:
    if any(len(part) == 1 and _is(part[0], "ldots") for part in parts):
        return _dotted([None if len(p) == 1 and _is(p[0], "ldots") else read(p) for p in parts], braces)
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
        regular = all(b - a == step for a, b in zip(head, head[1:], strict=False))
        regular = regular and all(b - a == step for a, b in zip(tail, tail[1:], strict=False))
        if regular and steps.is_Integer and at <= steps <= 2000:
            return Items(tuple(Value(head[0] + n * step) for n in range(int(steps) + 1)), braces=braces)
    return Dotted(tuple(items), braces)


def union(tokens: Tokens) -> Reading | None:
    r"""``(-\infty,-1)\cup(1,\infty)``, ``\mathbb{R}\setminus\{1\}``."""
    parts, joints = _split(tokens, lambda t: _is(t, "cup", "cap", "setminus") or _is_word(t, "U"))
    if not joints:
        return None
    pieces = [as_pieces(read(part)) for part in parts]
    if any(p is None for p in pieces):
        raise UnreadableError("a union of what are no intervals")
    some = [p for p in pieces if p is not None]
    if all(_is(j, "cup") or j.kind == "run" for j in joints):
        return _union(some)
    if len(joints) == 1 and _is(joints[0], "setminus") and some[0].parts == _ALL:
        points = sorted(p[0] for p in some[1].parts if p[0] == p[2] and p[0].is_real)
        if len(points) == len(some[1].parts):
            edges = [-sympy.oo, *points, sympy.oo]
            return Pieces(tuple((a, False, b, False) for a, b in zip(edges, edges[1:], strict=False)))
    if all(_is(j, "cap") for j in joints):
        return _intersection(some)
    raise UnreadableError("a difference of sets is not computed")


_ALL = ((-sympy.oo, False, sympy.oo, False),)


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


def _union(pieces: Sequence[Pieces]) -> Pieces:
    names = {p.variable for p in pieces if p.variable}
    if len(names) > 1:
        raise UnreadableError("intervals for different variables")
    return Pieces(tuple(part for p in pieces for part in p.parts), names.pop() if names else "")


def _intersection(pieces: Sequence[Pieces]) -> Pieces:
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


def residue(tokens: Tokens) -> Reading | None:
    r"""``x \equiv 3 \pmod 7``, ``3 \pmod 7`` and ``3 (\bmod 7)``."""
    top = _top_level(tokens)
    at = next((i for i, t in top if _is(t, "pmod")), None)
    inner = tokens
    if at is None and any(_is(t, "equiv") for _, t in top):
        at = next((i for i, t in enumerate(tokens) if _is(t, "bmod")), None)
        if at is None:
            raise UnreadableError("a congruence has no modulus")
        if _is(tokens[at - 1], "(") and _is(tokens[-1], ")"):
            inner = [*tokens[: at - 1], *tokens[at:-1]]
            at -= 1
    if at is None:
        return None
    value, modulus = inner[:at], inner[at + 1 :]
    parts, signs = _split(value, lambda t: _is(t, "equiv", "="))
    if len(parts) > 2 or (signs and not _name(parts[0])):
        raise UnreadableError("a congruence that is no name and its value")
    return Residue(expression(parts[-1]), expression(modulus))


_INEQUALITIES = {"<": ">", ">": "<", "leq": "geq", "geq": "leq", "neq": "neq"}
_RELATIONS = ("=", "approx", "in", "equiv", *_INEQUALITIES)


def membership(tokens: Tokens) -> Reading | None:
    r"""``x \in (-1, 2)`` is the interval, ``(x,y) \in \{(1,2)\}`` the set."""
    parts, signs = _split(tokens, lambda t: _is(t, "in"))
    if len(signs) != 1 or any(_is(t, *_INEQUALITIES, "=") for _, t in _top_level(tokens)):
        return None
    name = _name(parts[0])
    inner = read(parts[1])
    pieces = as_pieces(inner)
    if pieces is not None and isinstance(inner, Pieces | Group):
        return replace(pieces, variable=name)
    if (name or _names(parts[0])) and isinstance(inner, Items | Pieces):
        return inner
    raise UnreadableError("a membership that is no name and its set")


def inequality(tokens: Tokens) -> Reading | None:
    r"""``x \le 3``, ``-1 < x < 2``, ``> 5`` as intervals; ``a + b > c`` as a relation."""
    parts, signs = _split(tokens, lambda t: _is(t, *_INEQUALITIES))
    if not signs or any(_is(t, "=") for _, t in _top_level(tokens)):
        return None
    if len(signs) == 1 and not parts[0]:
        return _interval(signs[0].text, expression(parts[1]), "")
    sides = [expression(part) for part in parts]
    names = [_name(part) for part in parts]
    if len(signs) == 1:
        sign = signs[0].text
        if names[0] and sides[0] not in sides[1].atoms(sympy.Symbol):
            return _interval(sign, sides[1], names[0])
        if names[1] and sides[1] not in sides[0].atoms(sympy.Symbol):
            return _interval(_INEQUALITIES[sign], sides[0], names[1])
        difference = sides[0] - sides[1]
        return Relation(sign, difference) if sign in (">", "geq", "neq") else Relation(_INEQUALITIES[sign], -difference)
    if len(signs) == 2 and names[1]:
        first, second = signs[0].text, signs[1].text
        if {first, second} <= {"<", "leq"}:
            return Pieces(((sides[0], first == "leq", sides[2], second == "leq"),), names[1])
        if {first, second} <= {">", "geq"}:
            return Pieces(((sides[2], second == "geq", sides[0], first == "geq"),), names[1])
    raise UnreadableError("a chain of relations cannot be read")


def _interval(sign: str, bound: sympy.Expr, variable: str) -> Pieces:
    if sign in (">", "geq"):
        return Pieces(((bound, sign == "geq", sympy.oo, False),), variable)
    if sign in ("<", "leq"):
        return Pieces(((-sympy.oo, False, bound, sign == "leq"),), variable)
    return Pieces(((-sympy.oo, False, bound, False), (bound, False, sympy.oo, False)), variable)


_GREEK_NAME = (
    r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|psi|rho|sigma|tau|omega|xi|eta|Delta|Phi|Omega|Theta)"
)
_NAME = re.compile(
    rf"""(?:[A-Za-z]|{_GREEK_NAME})(?:'|\ '')*(?:_(?:\{{[^{{}}]*\}}|\S))?'*(?:\([^()=<>]*\))?
    | [A-Z]{{2,4}} | \|[A-Z]{{2}}\| | \\(?:angle|triangle|measuredangle|overline|vec)\{{?[A-Z]{{1,4}}\}}?
    | (?:m)?\\angle[A-Z]{{1,3}}
    | \\frac\{{?d\w?\}}?\{{?d\w\}}? | \\frac\{{d\^\{{?2\}}?\w\}}\{{d\w\^\{{?2\}}?\}}
    | [a-z](?:\+[a-z])+ | \w+_(?:\{{[^{{}}]*\}})
    | (?:ans|answer|area|volume|perimeter|Area|Ans|Answer|total|max|min|\\max|\\min|result|value|sum|length|distance|time|slope|Total|number)
    """,
    re.VERBOSE,
)


def _name(tokens: Tokens) -> str:
    """What the tokens name, ``x``, ``f(x)``, ``a_n``, ``m+n``, ``AB``, ``\\angle ABC``; empty if they are no name."""
    text = "".join(("\\" if t.kind == "command" else "") + t.text for t in tokens)
    if text in ("e", "i", "") or not _NAME.fullmatch(text):
        return ""
    return re.sub(r"\{(\w)\}", r"\1", text)


def _names(tokens: Tokens) -> bool:
    """Whether the tokens are several names in brackets: ``(x, y)``."""
    if not _encloses(tokens) or not _is(tokens[0], "(", "langle"):
        return False
    inner, _ = _split(tokens[1:-1], lambda t: _is(t, ","))
    return all(map(_name, inner)) and len(inner) > 1


def equation(tokens: Tokens) -> Reading | None:
    """``x = 5``, ``y = 2x + 1``, ``m + n = 256 + 37 = 293``, ``(x, y) = (1, 2)``."""
    parts, signs = _split(tokens, lambda t: _is(t, "=", "approx"))
    if not signs:
        return None
    if any(_is(t, "forall", "exists", *_INEQUALITIES) for _, t in _top_level(tokens)):
        raise UnreadableError("an equation beside another relation")
    first, last = parts[0], parts[-1]
    if not last:
        raise UnreadableError("an equation has no right side")
    if not first:
        return read(last)
    name = _name(first)
    if _names(first):
        return read(last)
    if not name and len(parts) == 2 and _name(last) and not _symbols(first):
        name, first, last = _name(last), last, first
    _refuse_contradiction(parts)
    if not name and len(parts) > 2 and not _symbols(first) and not _symbols(last):
        return read(last)
    if not name and len(parts) == 2 and not _symbols(first) and not _symbols(last):
        return read(last)
    left = _expression_or_none(first)
    right = read(last)
    if left is None and not name:
        raise UnreadableError("the left side of the equation cannot be read")
    if name and isinstance(right, Value) and sympy.Symbol(name) in right.expr.free_symbols:
        name = ""
    return Equation(name, left, right)


def _expression_or_none(tokens: Tokens) -> sympy.Expr | None:
    try:
        return expression(tokens)
    except UnreadableError:
        return None


def _symbols(tokens: Tokens) -> bool:
    found = _expression_or_none(tokens)
    return found is None or bool(found.free_symbols)


def _refuse_contradiction(parts: list[Tokens]) -> None:
    """``2 + 2 = 5`` is no answer: the sides that are numbers have to be equal."""
    numbers = [v for p in parts if (v := _expression_or_none(p)) is not None and not v.free_symbols]
    for a, b in zip(numbers, numbers[1:], strict=False):
        if a.is_finite and b.is_finite and abs((a - b).evalf(30)) > abs(b.evalf(30)) / 10**2 + sympy.Rational(1, 10**9):
            raise UnreadableError("the sides of the equation are not equal")
        if a.is_Rational and b.is_Rational and a != b and not any(_is(t, "approx") for p in parts for t in p):
            raise UnreadableError("the sides of the equation are not equal")


def matrix(tokens: Tokens) -> Reading | None:
    r"""``\begin{pmatrix}...\end{pmatrix}``, of a ``vmatrix`` the determinant; by cases; a factor may stand before it."""
    begins = [i for i, t in enumerate(tokens) if t.text.startswith("begin ")]
    if len(begins) != 1 or not tokens[-1].text.startswith("end "):
        if begins:
            raise UnreadableError("more than one matrix, or more than a matrix")
        return None
    at = begins[0]
    kind = tokens[at].text.removeprefix("begin ")
    parts, _ = _split(tokens[at + 1 : -1], lambda t: _is(t, "\\"))
    rows = [_split(part, lambda t: _is(t, "&"))[0] for part in parts if part]
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
    tokens = tokens[:-1] if tokens and _is(tokens[-1], ",", ".", ";") else tokens
    return tokens[1:] if tokens and _is_word(tokens[0], "if", "for", "when") else tokens


def _condition(tokens: Tokens) -> Reading:
    return Words("otherwise") if _letters(tokens) in (["otherwise"], ["else"]) else read(tokens)


def enclosed(tokens: Tokens) -> Reading | None:
    r"""``(1,2)``, ``[0,1)``, ``\{1,2\}``, ``\langle 1,2\rangle``; brackets round one thing are nothing."""
    if not _encloses(tokens) or not _is(tokens[0], "(", "[", "{", "langle"):
        return None
    inner = tokens[1:-1]
    if any(_is(t, "choose") for _, t in _top_level(inner)):
        return None
    opens, closes = tokens[0].text, tokens[-1].text
    braces = opens == "{"
    if braces and not inner:
        return Words("\\emptyset")
    parts, joints = _split(inner, lambda t: _is(t, ",", ";"))
    if not joints:
        if not inner:
            raise UnreadableError("a bracket holds nothing")
        if braces and any(_is(t, "|", ":") for _, t in _top_level(inner)):
            return _by_condition(inner)
        if {opens, closes} & {"langle", "rangle"} or (opens, closes) not in (("(", ")"), ("[", "]"), ("{", "}")):
            raise UnreadableError("brackets that hold one thing do not match")
        inside = read(inner)
        if braces:
            return Items(inside.items if isinstance(inside, Items) else (inside,), braces=True)
        return inside
    if braces:
        return _of_parts(parts, braces=True)
    if any(len(p) == 1 and _is(p[0], "ldots") for p in parts):
        return Group(
            tuple(Words("...") if len(p) == 1 and _is(p[0], "ldots") else read(p) for p in parts), opens, closes
        )
    ordinary = {"langle": "(", "rangle": ")"}
    return Group(tuple(read(part) for part in parts), ordinary.get(opens, opens), ordinary.get(closes, closes))


def _by_condition(tokens: Tokens) -> Reading:
    r"""``\{x \mid x > 2\}`` is the interval."""
    parts, _ = _split(tokens, lambda t: _is(t, "|", ":"))
    if len(parts) == 2 and (name := _name(parts[0])):
        pieces = read(parts[1])
        if isinstance(pieces, Pieces) and pieces.variable == name:
            return pieces
    raise UnreadableError("a set by a condition that is no interval")


def ratio(tokens: Tokens) -> Reading | None:
    """``2 : 3``, ``1:2:3``, ``2 to 3``."""
    parts, joints = _split(tokens, lambda t: _is(t, ":") or _is_word(t, "to"))
    return Ratio(tuple(expression(part) for part in parts)) if joints else None


def constant_set(tokens: Tokens) -> Reading | None:
    r"""``\mathbb{R}``, ``\emptyset``."""
    if len(tokens) != 1 or tokens[0].kind != "command":
        return None
    if tokens[0].text == "mathbb R":
        return Pieces(_ALL)
    return (
        Words("\\" + tokens[0].text) if tokens[0].text.startswith("mathbb ") or tokens[0].text == "emptyset" else None
    )


_MONEY = ("$", "€", "£", "¥")


def money(tokens: Tokens) -> Reading | None:
    r"""``\$32.50``, ``-\$5``."""
    sign = [tokens[0]] if _is(tokens[0], "-") else []
    rest = tokens[len(sign) :]
    if not rest or rest[0].text not in _MONEY:
        return None
    inner = read([*sign, *rest[1:]])
    if not isinstance(inner, Value) or (inner.unit != NO_UNIT and inner.unit.kind != "$1"):
        raise UnreadableError("an amount of money that is no number")
    return Value(inner.expr, Unit(Fraction(1), f"{rest[0].text}1"))


def feet_and_minutes(tokens: Tokens) -> Reading | None:
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


def in_base(tokens: Tokens) -> Reading | None:
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


def quantity(tokens: Tokens) -> Reading | None:
    r"""An expression, mostly a number, with a unit or without: ``12\text{ cm}^2``, ``50\%``, ``90^\circ``, ``5 apples``."""
    if len(tokens) > 2 and _is(tokens[-1], ")") and (note := _note(tokens)) is not None:
        return note
    if any(_is(t, "sin", "cos", "tan", "cot", "sec", "csc") for t in tokens):
        return Value(expression(tokens))
    for ending, name in ((["^", "circ"], "°1"), (["^", "{", "circ", "}"], "°1"), (["circ"], "°1"), (["%"], "%1")):
        if [t.text for t in tokens[-len(ending) :]] == ending and len(tokens) > len(ending):
            return Value(expression(tokens[: -len(ending)]), Unit(Fraction(1), name))
    if len(tokens) > 1 and (tokens[-1].text in _MONEY or _is(tokens[-1], "Omega")):
        amount = _expression_or_none(tokens[:-1])
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
    first = unit([t for t in tokens[at:following] if not _is_word(t, "and") and not _is(t, ",")])
    rest = read(tokens[following:])
    if first.counted or not isinstance(rest, Value) or rest.unit.kind != first.kind or rest.unit.factor >= first.factor:
        raise UnreadableError("two amounts that do not add up")
    return _added(Value(value, first), rest)


def _added(large: Value, small: Value) -> Value:
    """``2 hours`` and ``15 minutes`` in hours."""
    factor = small.unit.factor / large.unit.factor
    return Value(large.expr + small.expr * sympy.Rational(factor.numerator, factor.denominator), large.unit)


def _counts(tokens: Tokens, at: int) -> bool:
    """Whether a number counts a thing, and is not the power in ``cm^2``."""
    return not _is(tokens[at - 1], "^", "{", "-")


def _start_of_unit(tokens: Tokens) -> int | None:
    for i, token in _top_level(tokens):
        if i and is_unit_name(token) and not _is(tokens[i - 1], "_", "^"):
            return i
    # an upright unit in braces, as of \mathrm{m/s}
    for i, token in enumerate(tokens):
        if i and _is(token, "{") and i + 1 < len(tokens) and tokens[i + 1].upright and is_unit_name(tokens[i + 1]):
            return None if _is(tokens[i - 1], "_", "^", "frac", "sqrt") else i
        if i and token.kind == "word" and _is(tokens[i - 1], "(") and i > 1:
            return i - 1 if is_unit_name(token) else None
    return None


def _note(tokens: Tokens) -> Reading | None:
    """``5 (five)``: the same number again in words."""
    at = max(i for i, t in enumerate(tokens) if _is(t, "("))
    if at == 0:
        return None
    said = tokens[at + 1 : -1]
    number = number_in_words(" ".join(t.text for t in said)) if said and all(_letters([t]) for t in said) else None
    if number is None:
        return None
    value = read(tokens[:at])
    if not isinstance(value, Value) or value.expr != number:
        raise UnreadableError("the number in words is another one")
    return value


_RULES: tuple[Callable[[Tokens], Reading | None], ...] = (
    clock, feet_and_minutes, in_base, words, bound_in_words, family, plus_or_minus, alternatives, listed, union, residue,
    membership, inequality, equation, constant_set, enclosed, matrix, ratio, money, quantity,
)  # fmt: skip
