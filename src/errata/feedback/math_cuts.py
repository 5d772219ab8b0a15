"""Tokens of an answer cut at the top level, outside all brackets, and freed of what stands around the answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import sympy

from errata.feedback.math_expression import expression
from errata.feedback.math_forms import Reading
from errata.feedback.math_text import Token, UnreadableError

__all__ = [
    "INEQUALITIES",
    "RELATIONS",
    "Read",
    "Tokens",
    "are_names",
    "encloses",
    "expression_or_none",
    "is_sign",
    "is_word",
    "letters",
    "name_of",
    "split",
    "top_level",
    "unwrapped",
]

Tokens = list[Token]


# -- Helpers on tokens --

_OPEN = frozenset(("(", "[", "{", "langle", "lfloor", "lceil"))


_CLOSE = frozenset((")", "]", "}", "rangle", "rfloor", "rceil"))


def nesting(token: Token) -> int:
    if token.kind not in ("sign", "command"):
        return 0
    return (token.text in _OPEN or token.text.startswith("begin ")) - (
        token.text in _CLOSE or token.text.startswith("end ")
    )


def top_level(tokens: Tokens) -> list[tuple[int, Token]]:
    """The tokens outside all brackets, with their positions."""
    depth, found = 0, []
    for i, token in enumerate(tokens):
        step = nesting(token)
        if depth == 0 and step == 0:
            found.append((i, token))
        depth += step
        if depth < 0:
            raise UnreadableError(f"{token.text!r} closes nothing")
    if depth:
        raise UnreadableError("a bracket is not closed")
    return found


def split(tokens: Tokens, where: Callable[[Token], bool]) -> tuple[list[Tokens], list[Token]]:
    """The parts between the top-level tokens that ``where`` picks, and those tokens."""
    cuts = [i for i, token in top_level(tokens) if where(token)]
    edges = [-1, *cuts, len(tokens)]
    return [tokens[a + 1 : b] for a, b in itertools.pairwise(edges)], [tokens[i] for i in cuts]


def encloses(tokens: Tokens) -> bool:
    """Whether the first token opens a bracket that only the last one closes."""
    if len(tokens) < 2 or nesting(tokens[0]) != 1:
        return False
    depth = 0
    for i, token in enumerate(tokens):
        depth += nesting(token)
        if depth == 0:
            return i == len(tokens) - 1
    return False


def is_sign(token: Token, *texts: str) -> bool:
    return token.kind in ("sign", "command") and token.text in texts


def is_word(token: Token, *texts: str) -> bool:
    return token.kind in ("word", "run") and token.text.lower() in texts


def letters(tokens: Tokens) -> list[str]:
    return [t.text.lower() for t in tokens if t.kind in ("word", "run", "letter")]


INEQUALITIES = {"<": ">", ">": "<", "leq": "geq", "geq": "leq", "neq": "neq"}


RELATIONS = ("=", "approx", "in", "equiv", *INEQUALITIES)


_GREEK_NAME = (
    r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|psi|rho|sigma|tau|omega|xi|eta|Delta|Phi|Omega|Theta)"
)


_NAME = re.compile(
    rf"""(?:[A-Za-z]|{_GREEK_NAME})(?:'|\ '')*(?:_(?:\{{[^{{}}]*\}}|\S))?'*(?:\([^()=<>]*\))?
    | [A-Z]{{2,4}} | \|[A-Z]{{2}}\| | \\(?:angle|triangle|measuredangle|overline|vec)\{{?[A-Z]{{1,4}}\}}?
    | (?:m)?\\angle[A-Z]{{1,3}}
    | \\frac\{{?d\w?\}}?\{{?d\w\}}? | \\frac\{{d\^\{{?2\}}?\w\}}\{{d\w\^\{{?2\}}?\}}
    | [a-z](?:\+[a-z])+ | \w+_(?:\{{[^{{}}]*\}})
    | (?:ans|answer|area|volume|perimeter|Area|Ans|Answer|total|max|min
      |\\max|\\min|result|value|sum|length|distance|time|slope|Total|number)
    """,
    re.VERBOSE,
)


def name_of(tokens: Tokens) -> str:
    """What the tokens name, ``x``, ``f(x)``, ``a_n``, ``m+n``, ``AB``, ``\\angle ABC``; empty if they are no name."""
    text = "".join(("\\" if t.kind == "command" else "") + t.text for t in tokens)
    if text in ("e", "i", "") or not _NAME.fullmatch(text):
        return ""
    return re.sub(r"\{(\w)\}", r"\1", text)


def are_names(tokens: Tokens) -> bool:
    """Whether the tokens are several names in brackets: ``(x, y)``."""
    if not encloses(tokens) or not is_sign(tokens[0], "(", "langle"):
        return False
    inner, _ = split(tokens[1:-1], lambda t: is_sign(t, ","))
    return all(map(name_of, inner)) and len(inner) > 1


def expression_or_none(tokens: Tokens) -> sympy.Expr | None:
    try:
        return expression(tokens)
    except UnreadableError:
        return None


# -- What is taken off before reading --

_FILLERS = frozenset(
    [
        "the",
        "final",
        "answer",
        "is",
        "ans",
        "about",
        "approximately",
        "approx",
        "exactly",
        "roughly",
        "around",
        "solution",
        "solutions",
        "are",
        "result",
        "value",
        "equals",
        "so",
        "therefore",
        "thus",
        "hence",
        "correct",
        "nearly",
        "only",
    ]
)


_ROWS = ("aligned", "align", "gathered", "split", "gather", "equation", "alignedat", "eqnarray", "array", "multline")


def unwrapped(tokens: Tokens) -> Tokens:
    """Without braces, alignment, Markdown's stars and words such as "the answer is" around the answer."""
    while True:
        before = tokens
        if encloses(tokens) and is_sign(tokens[0], "{") and tokens[0].kind == "sign":
            inner = tokens[1:-1]
            if inner and not any(is_sign(t, ",", "choose") for _, t in top_level(inner)):
                tokens = inner
        if tokens and tokens[0].text.removeprefix("begin ") in _ROWS[:-2] and encloses(tokens):
            tokens = _joined_rows(tokens[1:-1])
        while tokens and len(tokens) > 1 and is_word(tokens[0], *_FILLERS):
            tokens = tokens[1:]
        if tokens and tokens != before and is_sign(tokens[0], ":", "="):
            tokens = tokens[1:]
        if len(tokens) > 1 and is_sign(tokens[0], "approx", "sim", "therefore"):
            tokens = tokens[1:]
        if len(tokens) > 1 and is_sign(tokens[-1], "."):
            tokens = tokens[:-1]
        if tokens == before:
            return tokens


def _joined_rows(tokens: Tokens) -> Tokens:
    """Aligned rows as one line; a row that does not begin with a relation is a further equation."""
    parts, _ = split(tokens, lambda t: is_sign(t, "\\"))
    rows = [[t for t in part if not is_sign(t, "&")] for part in parts]
    line: Tokens = []
    for row in filter(None, rows):
        if line and not is_sign(row[0], *RELATIONS):
            line.append(Token("sign", ","))
        line += row
    return line


Read = Callable[[Tokens], "Reading"]
"""Reads what stands inside an answer."""
