"""What stands beside a number: units, currencies, per cent, counted things; and numbers written as words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from errata.feedback.math_text import Token, UnreadableError

__all__ = ["NO_UNIT", "Unit", "is_unit_name", "number_in_words", "unit"]

F = Fraction
_BASE: dict[str, tuple[Fraction, str]] = {
    "m": (F(1), "m"), "km": (F(1000), "m"), "cm": (F(1, 100), "m"), "mm": (F(1, 1000), "m"), "dm": (F(1, 10), "m"),
    "nm": (F(1, 10**9), "m"), "in": (F(254, 10000), "m"), "ft": (F(3048, 10000), "m"), "yd": (F(9144, 10000), "m"),
    "mi": (F(1609344, 1000), "m"), "g": (F(1), "g"), "kg": (F(1000), "g"), "mg": (F(1, 1000), "g"),
    "ton": (F(10**6), "g"), "lb": (F(45359237, 100000), "g"), "oz": (F(45359237, 1600000), "g"), "s": (F(1), "s"),
    "ms": (F(1, 1000), "s"), "min": (F(60), "s"), "h": (F(3600), "s"), "day": (F(86400), "s"), "week": (F(604800), "s"),
    "month": (F(1), "month"), "year": (F(12), "month"), "l": (F(1, 1000), "m3"), "ml": (F(1, 10**6), "m3"),
    "gallon": (F(1), "gallon"), "dollar": (F(1), "$"), "cent": (F(1, 100), "$"), "euro": (F(1), "€"),
    "pound": (F(1), "£"), "rupee": (F(1), "rupee"), "yuan": (F(1), "yuan"), "degree": (F(1), "°"), "percent": (F(1), "%"),
    "N": (F(1), "N"), "J": (F(1), "J"), "kJ": (F(1000), "J"), "W": (F(1), "W"), "kW": (F(1000), "W"), "V": (F(1), "V"),
    "A": (F(1), "A"), "Hz": (F(1), "Hz"), "Pa": (F(1), "Pa"), "kPa": (F(1000), "Pa"), "K": (F(1), "K"),
    "mol": (F(1), "mol"), "eV": (F(1), "eV"), "ohm": (F(1), "ohm"), "rad": (F(1), "rad"), "mph": (F(1), "mph"),
    "C": (F(1), "°C"), "F": (F(1), "°F"), "T": (F(1), "T"), "L": (F(1, 1000), "m3"), "mL": (F(1, 10**6), "m3"),
}  # fmt: skip
_NAMES = {
    "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "centimeter": "cm", "centimetre": "cm",
    "millimeter": "mm", "millimetre": "mm", "inch": "in", "inches": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "gram": "g", "kilogram": "kg", "kilo": "kg", "pounds": "pound", "lbs": "lb", "second": "s",
    "sec": "s", "minute": "min", "mins": "min", "hour": "h", "hr": "h", "hrs": "h", "liter": "l", "litre": "l",
    "milliliter": "ml", "usd": "dollar", "deg": "degree", "pct": "percent", "newton": "N", "joule": "J", "watt": "W",
    "volt": "V", "radian": "rad", "ounce": "oz", "tonne": "ton",
}  # fmt: skip
_ANY_UNIT = frozenset(("unit", "units", "u"))


# Words that change the number or say that it is not the whole answer: none of them is a counted thing.
def _several(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NO_THING = _several(
    "and or not no nor non than more less fewer least most over under above below between from to times plus minus "
    "divided multiplied by squared cubed hundred thousand million billion trillion dozen half third quarter quarters "
    "halves thirds mod modulo base factorial if when unless except root negative positive only otherwise but maybe "
    "perhaps either neither none all both except excluding including where for such is are was equals equal at up down "
    "until through cannot can does do infinity infinite undefined wrong incorrect false true greater smaller larger "
    "minimum maximum exponent power choose log sin cos tan remainder without until beyond another about approximately "
    "roughly around almost nearly binary hexadecimal octal decimal score gross th st nd rd double twice triple pair pairs"
)
_SMALL = _several(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = _several("twenty thirty forty fifty sixty seventy eighty ninety")


@dataclass(frozen=True, slots=True)
class Unit:
    """``km/h`` is ``Unit(Fraction(5, 18), "m1 s-1")``; of counted things the factor is 1 and the kind their words."""

    factor: Fraction
    kind: str
    counted: bool = False


NO_UNIT = Unit(F(1), "")


def number_in_words(text: str) -> int | None:
    """``"twenty-one"`` is 21; ``None`` for what is no number up to 99 or a round hundred."""
    words = re.split(r"[\s-]+", text.strip().lower())
    if len(words) == 2 and words[1] == "hundred" and words[0] in _SMALL[1:10]:
        return 100 * _SMALL.index(words[0])
    if len(words) == 1 and words[0] in _SMALL:
        return _SMALL.index(words[0])
    if words[0] in _TENS and (len(words) == 1 or (len(words) == 2 and words[1] in _SMALL[1:10])):
        return 20 + 10 * _TENS.index(words[0]) + (_SMALL.index(words[1]) if len(words) == 2 else 0)
    return None


def _canonical(name: str) -> str:
    """The key of a unit's name in the table: ``hours`` is ``h``; empty if it is not there."""
    singular = name[:-1] if name.endswith("s") and len(name) > 2 else name
    for spelled in (name, _NAMES.get(name.lower(), ""), singular, _NAMES.get(singular.lower(), ""), singular.lower()):
        if spelled in _BASE:
            return spelled
    return ""


def is_unit_name(token: Token) -> bool:
    """Whether a unit can begin here: a word, an upright letter, or letters that are a unit or a word of the language."""
    if token.kind == "word":
        return token.text.lower() not in _NO_THING
    if token.kind == "letter":
        return token.upright and token.text in _BASE
    if token.kind == "command" and token.text == "min":
        return True
    if token.kind != "run" or token.text.lower() in _NO_THING:
        return False
    known = _canonical(token.text)
    if known:
        return token.spaced or len(token.text) > 2 or known in ("km", "cm", "mm", "kg", "mi", "ft")
    return token.spaced and len(token.text) >= 3 and bool(re.search("[aeiouy]", token.text))


def unit(tokens: Sequence[Token]) -> Unit:
    """The unit that all ``tokens`` make up. Raises ``UnreadableError`` where they say more than what is counted."""
    words = [t.text for t in tokens]
    if any(w.lower() in _NO_THING for w in words):
        raise UnreadableError(f"what follows the number, {' '.join(words)!r}, is more than a unit")
    known = _known_unit(tokens)
    if known is not None:
        return known
    if not all(t.kind in ("word", "run", "letter") or t.text in ("-", "(", ")", ".", "'", "{", "}") for t in tokens):
        raise UnreadableError(f"what follows the number, {' '.join(words)!r}, is no unit")
    things = [w.lower() for t, w in zip(tokens, words, strict=True) if t.kind in ("word", "run", "letter")]
    if any(number_in_words(w) is not None for w in things):
        raise UnreadableError(f"what follows the number, {' '.join(words)!r}, holds another number")
    return Unit(F(1), " ".join(_singular(w) for w in things if w not in ("a", "an", "the", "of")), counted=True)


def _singular(word: str) -> str:
    for ending, short in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1 and not word.endswith("ss"):
            return word[: -len(ending)] + short
    return word


def _known_unit(tokens: Sequence[Token]) -> Unit | None:
    r"""Units of the table with powers and quotients: ``\text{cm}^2``, ``m/s``, ``square feet``, ``miles per hour``."""
    factor, dimensions = F(1), dict[str, int]()
    sign, square, at = 1, 1, 0
    found = False
    while at < len(tokens):
        token = tokens[at]
        at += 1
        text = token.text
        if text in ("/", "per") and found:
            sign = -1
        elif text in ("cdot", "*", ".", "{", "}"):
            continue
        elif text in ("square", "sq", "cubic"):
            square = 3 if text == "cubic" else 2
        elif text == "^" and token.kind == "sign":
            return None
        else:
            exponent, at = _exponent(tokens, at)
            exponent *= sign * square
            square = 1
            if text.lower() in _ANY_UNIT:
                found = True
                continue
            name = {"%": "percent", "circ": "degree", "$": "dollar"}.get(text) or _canonical(text)
            if not name:
                return None
            found = True
            size, kind = _BASE[name]
            factor *= size**exponent
            if kind == "m3":
                kind, exponent = "m", 3 * exponent
            dimensions[kind] = dimensions.get(kind, 0) + exponent
    if not found:
        return None
    return Unit(factor, " ".join(f"{k}{n}" for k, n in sorted(dimensions.items()) if n))


def _exponent(tokens: Sequence[Token], at: int) -> tuple[int, int]:
    """The exponent behind a unit's name, 1 if there is none, and the position behind it."""
    if at < len(tokens) and tokens[at].text == "^":
        rest = tokens[at + 1 : at + 5]
        texts = [t.text for t in rest]
        for form, length in ((["{", "-", None, "}"], 4), (["{", None, "}"], 3), ([None], 1)):
            if len(texts) >= length and all(f is None or f == t for f, t in zip(form, texts, strict=False)):
                number = texts[form.index(None)]
                if number.isdigit() and len(number) < 3:
                    return int(number) * (-1 if "-" in form else 1), at + 1 + length
        raise UnreadableError("the power of a unit cannot be read")
    return 1, at
