"""What an answer is written with: LaTeX, Unicode and Markdown brought to one spelling, then cut into tokens."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Token", "UnreadableError", "normalise", "spell", "tokenise"]

_LONGEST = 4000  # characters of an answer, and digits of a number
_DEEPEST = 40


class UnreadableError(ValueError):
    """What cannot be read as a whole; the text says why."""


@dataclass(frozen=True, slots=True)
class Token:
    """``Token("number", "0.5", value=Fraction(1, 2))``; the kinds are number, letter, run, word, command and sign."""

    kind: str
    text: str
    value: Fraction | None = None
    upright: bool = False
    """Of a letter: written in ``\\text``, ``\\mathrm`` or the like."""
    spaced: bool = False
    """Whether white space stands before it."""


# -- One spelling: each rule takes a text and returns it with one kind of variety removed. --

_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n", strict=True))
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta", "ι": "iota",
    "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "ς": "sigma", "τ": "tau",
    "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda",
    "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
"""Greek letters and their LaTeX commands, without the backslash."""
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ",
    "∗": "*", "÷": r"\div ", "∕": "/", "⁄": "/", "±": r"\pm ", "∓": r"\mp ", "√": r"\sqrt ", "∛": r"\sqrt[3]",
    "∜": r"\sqrt[4]", "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ", "⩾": r"\geq ", "≠": r"\neq ",
    "≈": r"\approx ", "≡": r"\equiv ", "≅": r"\cong ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ",
    "∖": r"\setminus ", "∅": r"\emptyset ", "⌀": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℚ": r"\mathbb{Q}", "ℕ": r"\mathbb{N}", "ℂ": r"\mathbb{C}", "°": r"^\circ ", "º": r"^\circ ", "′": "'", "’": "'",
    "″": "''", "“": '"', "”": '"', "…": r"\ldots ", "⋯": r"\ldots ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "〈": r"\langle ", "〉": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
    "∠": r"\angle ", "△": r"\triangle ", "∥": r"\parallel ", "⊥": r"\perp ", "→": r"\to ", "∧": r"\land ",
    "∨": r"\lor ", "¬": r"\neg ", "∀": r"\forall ", "∃": r"\exists ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ",
    "ϕ": r"\phi ", "ϵ": r"\epsilon ", "ℯ": "e", "ⅇ": "e", "ⅈ": "i", "％": "%", "：": ":", "，": ", ", "、": ", ",
    "（": "(", "）": ")", "∶": ":",
}  # fmt: skip
_SIGNS |= {sign: rf"\{name} " for sign, name in GREEK.items()}
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


def restore_commands(text: str) -> str:
    r"""Undoes an escape sequence that ate a backslash: a backspace and ``oxed`` is ``\boxed``."""
    text = re.sub("\x08(?=oxed|egin|inom|ar|f)", r"\\b", text)
    text = re.sub("\x0c(?=rac|box|loor)", r"\\f", text)
    return re.sub("\t(?=ext|imes|an|heta|frac|o )", r"\\t", text)


def plain_signs(text: str) -> str:
    """Unicode's signs as LaTeX: ``2√5`` is ``2\\sqrt 5``, ``x²`` is ``x^{2}``, ``½`` is ``\\frac{1}{2}``."""
    text = text.translate(_INVISIBLE)
    text = re.sub(f"[{''.join(_SUPER)}]+", lambda m: "^{" + "".join(_SUPER[c] for c in m[0]) + "}", text)
    text = re.sub(f"[{''.join(_SUB)}]+", lambda m: "_{" + "".join(_SUB[c] for c in m[0]) + "}", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)
    text = "".join(_SIGNS.get(c, c) for c in text)
    parts = (unicodedata.normalize("NFKC", c) for c in text)
    return "".join(re.sub(r"^(\d+)⁄(\d+)$", r"\\frac{\1}{\2}", part) for part in parts)


def without_markup(text: str) -> str:
    """Without the signs of mathematics and of Markdown around it: ``**$5$**`` is ``5``."""
    text = re.sub(r"(?<!\\)\$|\\[()]|(?<!\\)\\[\[\]]|`", " ", text)
    text = re.sub(r"\*\*(?=\S)(.+?)(?<=\S)\*\*", r"\1", text.strip())
    return re.sub(r"^([*_\"])([^*_\"]+)\1$", r"\2", text)


def without_size_and_colour(text: str) -> str:
    r"""Without ``\left``, ``\displaystyle``, ``\color{red}``: what changes the look alone."""
    text = re.sub(r"\\(?:left|right|middle)\s*\.", "", text)
    text = re.sub(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*", "", text)
    text = re.sub(r"\\(?:display|text|script)style(?![a-z])|\\(?:no)?limits(?![a-z])", "", text)
    text = re.sub(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}|\\color\s*(?:\{[^{}]*\}|[a-z]+)", "", text)
    text = re.sub(r"\\[hv]?phantom\s*\{[^{}]*\}", "", text)
    return re.sub(
        r"\\(?:boxed|fbox|framebox|underline|ensuremath|mathstrut|math(?:bin|rel|op|ord|inner)"
        r"|tiny|small|normalsize|large|Large|LARGE|huge|Huge)(?![A-Za-z])",
        "",
        text,
    )


def one_space(text: str) -> str:
    r"""``\,``, ``~`` and ``\quad`` are a space, ``\!`` is none."""
    text = text.replace(r"\!", "").replace("{,}", ",")
    return re.sub(r"(?<!\\)\\[,;:> ]|(?<!\\)~|\\q?quad(?![a-z])|\\(?:h|thin)space(?:\{[^{}]*\})?|\s+", " ", text)


def grouped_thousands(text: str) -> str:
    """A number with spaces between its thousands: ``10 000`` is ``10000``."""
    return re.sub(
        r"(?<![\d.,^_/] )(?<![\d.,^_/])\d{1,3}(?: \d{3})+(?![\d/]| \d)", lambda m: m[0].replace(" ", ""), text
    )


RULES = (
    restore_commands, plain_signs, without_markup, without_size_and_colour, one_space, grouped_thousands,
)  # fmt: skip


def normalise(text: str) -> str:
    """The text in one spelling, by all rules in order. Raises ``UnreadableError`` for one that is longer than any answer."""
    if len(text) > _LONGEST:
        raise UnreadableError(f"it is longer than {_LONGEST} characters")
    for rule in RULES:
        text = rule(text)
    text = text.strip()
    return text[:-1].rstrip() if text.endswith((".", ";")) and not text.endswith(("..", "\\;")) else text


# -- Tokens --

_UPRIGHT = (
    "text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|mathnormal"
    "|operatorname|boldsymbol|bm|rm|bf|it|sf|emph"
)
_SAME = {
    "le": "leq", "ge": "geq", "leqslant": "leq", "geqslant": "geq", "ne": "neq", "dfrac": "frac", "tfrac": "frac",
    "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "varnothing": "emptyset", "lbrace": "{", "rbrace": "}",
    "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|",
    "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots", "hdots": "ldots", "degree": "circ",
    "ast": "*", "div": "/", "colon": ":", "lt": "<", "gt": ">", "rightarrow": "to", "vee": "lor", "wedge": "land",
    "lnot": "neg", "backslash": "setminus", "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta",
    "implies": "Rightarrow", "uppi": "pi", "Pi": "Pi", "thickapprox": "approx", "simeq": "approx", "sim": "sim", "mod": "bmod",
    "tg": "tan",
    "ctg": "cot", "arctg": "arctan", "cosec": "csc", "infin": "infty", "overrightarrow": "vec", "neg": "neg",
}  # fmt: skip
_PLAIN = {
    "pi": "pi", "sqrt": "sqrt", "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
    "arcsin": "arcsin", "arccos": "arccos", "arctan": "arctan", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "ln": "ln", "log": "log", "lg": "lg", "exp": "exp", "gcd": "gcd",
    "lcm": "lcm", "max": "max", "min": "min", "inf": "infty", "infinity": "infty", "oo": "infty", "mod": "bmod",
    "theta": "theta", "alpha": "alpha", "beta": "beta", "gamma": "gamma", "phi": "phi", "lambda": "lambda",
    "omega": "omega", "abs": "abs", "cbrt": "cbrt", "det": "det", "union": "cup", "cis": "cis", "binom": "binom",
}  # fmt: skip
_TOKEN = re.compile(
    rf"""(?P<space>\s+)
    | (?P<repeat>\d*\.\d*(?:\\(?:overline|bar|dot)\s*\{{?\d+\}}?\d*)+ | \d+\.\d*\(\d+\)
        | \d*\.\d+\s*(?:\\[lc]?dots[bc]?(?![a-z])|\.\.\.))
    | (?P<power>\d+(?:\.\d+)?[eE][+-]?\d+(?![\dA-Za-z.(]))
    | (?P<thousands>(?<![\d.,])\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?(?!\d|,\d))
    | (?P<number>\d+(?:\.\d+)?|\.\d+)
    | \\(?:begin|end)\s*\{{(?P<environment>[A-Za-z]+\*?)\}}(?:\{{[lcr|\s]*\}})?
    | \\(?P<font>{_UPRIGHT})(?![A-Za-z])\s*\*?\s*(?P<brace>\{{)?
    | \\mathbb\s*\{{?(?P<set>[A-Z])\}}?
    | \\(?P<command>[A-Za-z]+|\\|.)
    | (?P<run>[A-Za-z]+)
    | (?P<dots>\.\.\.)
    | (?P<sign>\*\*|<=|>=|!=|=>|==|''|.)""",
    re.VERBOSE | re.DOTALL,
)


def tokenise(text: str, *, thousands: bool = True, powers: bool = True, upright: bool = False) -> list[Token]:
    """The tokens of a normalised text.

    ``thousands``: ``100,200`` is one number; ``powers``: ``4e-4`` is a power of ten; else a list, and Euler's number.
    """
    tokens: list[Token] = []
    position, spaced = 0, False
    while match := _TOKEN.match(text, position):
        position = match.end()
        if match["space"]:
            spaced = True
            continue
        if match["font"] and match["brace"]:
            end = _closing(text, position)
            inner = tokenise(text[position:end], thousands=thousands, powers=powers, upright=True)
            tokens += _in_braces(inner)
            position, spaced = end + 1, False
            continue
        if match["thousands"] and not thousands:
            position = match.start() + len(re.match(r"\d+", match[0])[0])  # type: ignore[index]
            tokens.append(_number(text[match.start() : position], spaced))
        elif match["power"] and not _is_power(match[0], tokens, spaced, powers):
            position = match.start() + len(re.match(r"[\d.]+", match[0])[0])  # type: ignore[index]
            tokens.append(_number(text[match.start() : position], spaced))
        else:
            tokens += _tokens_of(match, spaced, upright)
        spaced = False
    _refuse_depth(tokens)
    return tokens


def _in_braces(inner: list[Token]) -> list[Token]:
    """``\\text{e}^2`` is e squared, but a word's letters stay together; a space at the seam of a text separates."""
    if len(inner) > 1 and all(t.kind != "word" for t in inner):
        return [Token("sign", "{"), *inner, Token("sign", "}")]
    return inner


def _tokens_of(match: re.Match[str], spaced: bool, upright: bool) -> list[Token]:
    if match["repeat"]:
        return [Token("number", match[0], value=_repeating(match[0]), spaced=spaced)]
    if match["power"]:
        mantissa, _, exponent = match[0].lower().partition("e")
        if abs(int(exponent[:7])) > _LONGEST:
            raise UnreadableError("its power of ten is too large")
        return [Token("number", match[0], Fraction(mantissa) * Fraction(10) ** int(exponent), spaced=spaced)]
    if match["thousands"] or match["number"]:
        return [_number(match[0].replace(",", ""), spaced)]
    if match["environment"]:
        kind = match[0][1 : match[0].index("{")].strip()
        return [Token("command", f"{kind} {match['environment'].rstrip('*')}", spaced=spaced)]
    if match["font"]:  # \bf without braces
        return []
    if match["set"]:
        return [Token("command", f"mathbb {match['set']}", spaced=spaced)]
    if match["command"]:
        name = _SAME.get(match["command"], match["command"])
        return [Token("sign" if len(name) == 1 and name in "[]()|<>*/:" else "command", name, spaced=spaced)]
    if match["dots"]:
        return [Token("command", "ldots", spaced=spaced)]
    if match["run"]:
        return _of_run(match["run"], spaced, upright)
    sign = {"<=": "leq", ">=": "geq", "!=": "neq", "=>": "Rightarrow"}.get(match["sign"])
    return [Token("command", sign, spaced=spaced) if sign else Token("sign", match["sign"], spaced=spaced)]


def _of_run(run: str, spaced: bool, upright: bool) -> list[Token]:
    if run in _PLAIN or (upright and run.lower() in ("lcm", "mod")):
        return [Token("command", _PLAIN[run.lower()], spaced=spaced)]
    if len(run) == 1:
        return [Token("letter", run, upright=upright, spaced=spaced)]
    if upright:
        return [Token("word", run, upright=True, spaced=spaced)]
    # 'kpi', 'sinx': a name that is known, and letters
    for name in ("pi", "sqrt", "sin", "cos", "tan", "ln", "log", "theta"):
        for head, tail in ((run[: -len(name)], name), (run[len(name) :], name)):
            if len(head) == 1 and run in (head + tail, tail + head):
                parts = [head, tail] if run == head + tail else [tail, head]
                return [t for i, p in enumerate(parts) for t in _of_run(p, spaced and not i, upright)]
    return [Token("run", run, spaced=spaced)]


def _number(text: str, spaced: bool) -> Token:
    if len(text) > _LONGEST:
        raise UnreadableError("it has too many digits")
    return Token("number", text, value=Fraction(text), spaced=spaced)


def _is_power(text: str, before: list[Token], spaced: bool, powers: bool) -> bool:
    """Whether ``6.02e23`` is a power of ten. ``2e+1`` is Euler's number, ``4e-4`` can be either, ``a1e5`` is neither."""
    if before and not spaced and (before[-1].kind in ("letter", "run") or before[-1].text in ("^", "_")):
        return False
    mantissa, letter, exponent = re.split("([eE])", text)
    if letter == "E" or "." in mantissa or mantissa == "1" or exponent[0] not in "+-" or len(exponent) > 2:
        return True
    return powers and exponent[0] == "-"


def _repeating(text: str) -> Fraction:
    r"""``0.1\overline{6}``, ``0.\dot{3}``, ``0.1(6)`` and ``0.333...`` as fractions."""
    whole, _, rest = text.partition(".")
    if "dots" in rest or "..." in rest:
        digits = re.match(r"\d*", rest)[0]  # type: ignore[index]
        for period in range(1, len(digits) // 2 + 1):
            for lead in range(0, len(digits) - max(2 * period, 3) + 1):
                tail = digits[lead:]
                if all(c == tail[i % period] for i, c in enumerate(tail)):
                    return _cycle(whole, digits[:lead], tail[:period])
        raise UnreadableError("its decimals go on in no period that could be seen")
    dotted = re.fullmatch(r"(\d*)\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", rest)
    if dotted:
        return _cycle(whole, dotted[1], dotted[2] + dotted[3] + dotted[4])
    match = re.fullmatch(r"(\d*)(?:\\(?:overline|bar|dot)\s*\{?|\()(\d+)[})]?", rest)
    if not match:
        raise UnreadableError("its repeating decimals cannot be read")
    return _cycle(whole, match[1], match[2])


def _cycle(whole: str, lead: str, period: str) -> Fraction:
    repeated = Fraction(int(period), int("9" * len(period)))
    return Fraction(int(whole or "0")) + (int(lead or "0") + repeated) / Fraction(int("1" + "0" * len(lead)))


def _closing(text: str, start: int) -> int:
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:]):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return start + match.start()
    raise UnreadableError("a brace is not closed")


def _refuse_depth(tokens: list[Token]) -> None:
    depth = deepest = 0
    for token in tokens:
        depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(token.text, 0)
        deepest = max(deepest, depth)
    towers = sum(t.text == "^" for t in tokens)
    if deepest > _DEEPEST or towers > 4 * _DEEPEST or len(tokens) > _LONGEST // 4:
        raise UnreadableError("it is nested too deeply or too long")


def spell(tokens: list[Token]) -> str:
    """Tokens as one text without layout, to compare what cannot be read as mathematics."""
    parts = [("\\" if t.kind == "command" else "") + t.text for t in tokens]
    return " ".join(parts)
