"""One mathematical expression, read to its last token into a SymPy expression or refused.

Nothing is guessed: an unknown command, two numbers side by side or a bracket that stays open raise
:class:`~errata.feedback.math_text.UnreadableError`. So does what would take for ever to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import sympy

from errata.feedback.math_functions import (
    FUNCTIONS,
    INVERSE,
    OF_SEVERAL,
    binomial,
    double_factorial,
    exact,
    factorial,
    power,
)
from errata.feedback.math_text import GREEK, Token, UnreadableError

__all__ = ["expression"]


_NAMES = (frozenset(GREEK.values()) | {"ell", "hbar"}) - {"pi"}
"""Commands that stand for a variable."""

_APPLIED = frozenset("fghFGHPQOoT")


_ACCENTS = frozenset(
    ["vec", "hat", "bar", "tilde", "overline", "dot", "ddot", "widehat", "mathcal", "mathfrak", "mathscr"]
)


_CLOSE = {"(": ")", "[": "]", "{": "}"}


def expression(tokens: Sequence[Token]) -> sympy.Expr:
    """The expression that all ``tokens`` make up. Raises ``UnreadableError`` saying what could not be read."""
    parser = _Parser(tokens)
    try:
        value = parser.sum()
    except (TypeError, ValueError, ZeroDivisionError, RecursionError, OverflowError, AttributeError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"it cannot be computed ({type(error).__name__})") from None
    parser.end()
    if value.has(sympy.nan, sympy.zoo):
        raise UnreadableError("it is not defined")
    return value


class _Parser:
    """Recursive descent; each method reads what its name says and leaves the position behind it."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens, self._at, self._bars = tokens, 0, 0

    # -- the position --

    def _peek(self, ahead: int = 0) -> Token | None:
        return self._tokens[self._at + ahead] if self._at + ahead < len(self._tokens) else None

    def _is(self, *texts: str, ahead: int = 0) -> bool:
        token = self._peek(ahead)
        return token is not None and token.kind in ("sign", "command") and token.text in texts

    def _take(self, *texts: str) -> bool:
        if self._is(*texts):
            self._at += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._take(text):
            token = self._peek()
            raise UnreadableError(f"{text!r} is missing" + (f" before {token.text!r}" if token else " at its end"))

    def end(self) -> None:
        if token := self._peek():
            raise UnreadableError(f"'{_spelled(token)}' cannot be read there")

    # -- sums, products, powers --

    def sum(self) -> sympy.Expr:
        value = self._term()
        while self._is("+", "-"):
            minus = self._take("-") or not self._take("+")
            value = value - self._term() if minus else value + self._term()
        return value

    def _term(self) -> sympy.Expr:
        value = self._signed()
        while True:
            token = self._peek()
            if self._take("*", "cdot", "times"):
                value = value * self._signed()
            elif self._take("/"):
                value = self._quotient(value, self._signed())
            elif self._take("bmod"):
                value = sympy.Mod(exact(value), exact(self._signed()))
            elif token is not None and token.kind == "number" and self._tokens[self._at - 1].text != "!":
                raise UnreadableError(f"{token.text!r} stands beside another factor without a sign")
            elif self._begins_factor():
                value = value * self._power()
            else:
                return value

    def _signed(self) -> sympy.Expr:
        if self._take("-"):
            return -self._signed()
        return self._signed() if self._take("+") else self._power()

    @staticmethod
    def _quotient(above: sympy.Expr, below: sympy.Expr) -> sympy.Expr:
        if below == 0:
            raise UnreadableError("it divides by zero")
        return above / below

    def _begins_factor(self) -> bool:
        token = self._peek()
        if token is None or token.kind == "word":
            return False
        if token.kind in ("letter", "run", "number"):
            return True
        if token.text == "|":
            return self._bars == 0
        if token.kind == "sign":
            return token.text in ("(", "{", "[")
        return token.text in _STARTS or token.text in _NAMES or token.text in FUNCTIONS or token.text in OF_SEVERAL

    def _power(self) -> sympy.Expr:
        return self._raised(self._atom())

    def _raised(self, value: sympy.Expr) -> sympy.Expr:
        while True:
            if self._take("!"):
                value = double_factorial(value) if self._take("!") else factorial(value)
            elif self._is("^", "**") and self._degree_follows():
                self._at += 2 if self._is("circ", ahead=1) else 4
                value = value * sympy.pi / 180
            elif self._take("^", "**"):
                value = power(value, self._script())
            elif self._is("circ"):
                self._at += 1
                value = value * sympy.pi / 180
            else:
                return value

    def _degree_follows(self) -> bool:
        return self._is("circ", ahead=1) or (
            self._is("{", ahead=1) and self._is("circ", ahead=2) and self._is("}", ahead=3)
        )

    def _script(self) -> sympy.Expr:
        """An exponent: ``{...}``, or one signed atom, as in ``10^-3``."""
        if self._take("-"):
            return -self._script()
        self._take("+")
        token = self._peek()
        if token is not None and token.kind == "run":
            raise UnreadableError(f"an exponent {token.text!r} of several letters needs braces")
        return self._atom()

    # -- atoms --

    def _atom(self) -> sympy.Expr:
        token = self._peek()
        if token is None:
            raise UnreadableError("something is missing at its end")
        self._at += 1
        if token.kind == "number":
            return self._number(token)
        if token.kind == "letter":
            return self._letter(token)
        if token.kind == "run":
            return self._letters(token.text)
        if token.kind == "word":
            raise UnreadableError(f"the word {token.text!r} cannot be read there")
        if token.kind == "sign":
            if token.text in _CLOSE:
                return self._enclosed(_CLOSE[token.text])
            if token.text == "|":
                return self._absolute()
            raise UnreadableError(f"{token.text!r} cannot be read there")
        return self._command(token.text)

    def _enclosed(self, close: str) -> sympy.Expr:
        bars, self._bars = self._bars, 0
        value = self.sum()
        self._bars = bars
        if self._is("choose") and close == "}":
            self._at += 1
            value = binomial(value, self.sum())
        self._expect(close)
        return value

    def _absolute(self) -> sympy.Expr:
        self._bars += 1
        value = self.sum()
        self._bars -= 1
        self._expect("|")
        return sympy.Abs(value)

    def _number(self, token: Token) -> sympy.Expr:
        assert token.value is not None
        value = sympy.Rational(token.value.numerator, token.value.denominator)
        if self._is("_"):
            return self._in_base(token.text)
        if token.text.isdigit():
            return value + self._fraction_of_mixed()
        return value

    def _fraction_of_mixed(self) -> sympy.Expr:
        r"""The fraction of a mixed number, ``1\frac{1}{2}`` or ``1 1/2``; zero if there is none."""
        start = self._at
        if self._take("frac"):
            parts = [self._digits(), self._digits()]
            if None not in parts and parts[1]:
                return sympy.Rational(parts[0], parts[1])
        elif (token := self._peek()) and token.kind == "number" and token.spaced and self._is("/", ahead=1):
            below = self._peek(2)
            if below is not None and token.text.isdigit() and below.text.isdigit() and int(below.text):
                self._at += 3
                return sympy.Rational(int(token.text), int(below.text))
        self._at = start
        return sympy.Integer(0)

    def _digits(self) -> int | None:
        """The whole number of ``{12}`` or, of a ``\\frac12``, of one digit."""
        braced = self._take("{")
        token = self._peek()
        if token is None or token.kind != "number" or not token.text.isdigit():
            return None
        if not braced:
            return int(self._first_digit())
        self._at += 1
        return int(token.text) if self._take("}") else None

    def _first_digit(self) -> str:
        """One digit of a longer number: what is left of it is the next token."""
        token = self._tokens[self._at]
        if len(token.text) == 1:
            self._at += 1
            return token.text
        head, rest = token.text[0], token.text[1:]
        left = Token("number", rest, value=Fraction(rest) if rest.isdigit() else None)
        if not rest.isdigit() or not head.isdigit():
            raise UnreadableError(f"{token.text!r} cannot be split into arguments")
        self._tokens = [*self._tokens[: self._at], left, *self._tokens[self._at + 1 :]]
        return head

    def _argument(self) -> sympy.Expr:
        r"""A command's argument as LaTeX takes it: ``{...}`` or one digit, letter or command."""
        token = self._peek()
        if token is not None and token.kind == "number":
            return sympy.Integer(int(self._first_digit()))
        if token is not None and token.kind == "run":
            self._tokens = [
                *self._tokens[: self._at],
                *(Token("letter", c) for c in token.text),
                *self._tokens[self._at + 1 :],
            ]
        return self._atom()

    def _in_base(self, digits: str) -> sympy.Expr:
        """``101_2`` and ``13_{8}``: a whole number in a base."""
        self._at += 1
        braced = self._take("{")
        token = self._peek()
        self._at += 1
        if braced:
            self._expect("}")
        names = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
        base = names.get(token.text, token.text) if token else None
        try:
            return sympy.Integer(int(digits, int(base)))  # type: ignore[arg-type]
        except (ValueError, TypeError):
            raise UnreadableError(f"{digits} is no number in base {base}") from None

    def _letter(self, token: Token) -> sympy.Expr:
        name = token.text + self._subscript()
        if name in ("C", "P") and (value := self._combinations(name)) is not None:
            return value
        if self._is("'"):
            while self._take("'"):
                name += "'"
        if name == "e":
            return sympy.E
        if name == "i":
            return sympy.I
        head = name.partition("_")[0].rstrip("'")
        if head in _APPLIED and self._is("("):
            return sympy.Function(name)(*self._arguments())
        if "_" in name and self._is("^") and name.startswith("C_") and name[2:].isdigit():
            self._at += 1
            return binomial(sympy.Integer(int(name[2:])), self._script())
        return sympy.Symbol(name)

    def _combinations(self, name: str) -> sympy.Expr | None:
        """``C(10,3)``; ``None`` where the letter is something else."""
        start = self._at
        if self._is("("):
            try:
                parts = self._arguments()
            except UnreadableError:
                parts = []
            if len(parts) == 2 and all(p.is_Integer for p in parts):
                return binomial(*parts) if name == "C" else sympy.ff(*parts) if parts[0] <= 1000 else None
        self._at = start
        return None

    def _arguments(self) -> list[sympy.Expr]:
        self._expect("(")
        parts = [self.sum()]
        while self._take(","):
            parts.append(self.sum())
        self._expect(")")
        return parts

    def _subscript(self) -> str:
        if not self._take("_"):
            return ""
        if self._take("{"):
            start, depth = self._at, 1
            while (token := self._peek()) is not None:
                self._at += 1
                depth += {"{": 1, "}": -1}.get(token.text, 0) if token.kind == "sign" else 0
                if depth == 0:
                    return "_" + "".join(t.text for t in self._tokens[start : self._at - 1])
            raise UnreadableError("a subscript is not closed")
        token = self._peek()
        if token is None or (token.kind == "sign" and token.text not in "*"):
            raise UnreadableError("a subscript is missing")
        self._at += 1
        return "_" + token.text

    def _letters(self, run: str) -> sympy.Expr:
        """``xy`` is a product, and only the last letter has the subscript or the power that follows."""
        if len(run) > 40:
            raise UnreadableError("a word cannot be read there")
        value: sympy.Expr = sympy.Integer(1)
        for letter in run[:-1]:
            value = value * {"e": sympy.E, "i": sympy.I}.get(letter, sympy.Symbol(letter))
        return value * self._raised(self._letter(Token("letter", run[-1])))

    # -- commands --

    def _command(self, name: str) -> sympy.Expr:
        if name in _NAMES:
            name += self._subscript()
            if name in ("Theta", "Omega", "phi", "psi") and self._is("("):
                return sympy.Function(name)(*self._arguments())
            return sympy.Symbol(name)
        if name in FUNCTIONS:
            return self._function(name)
        if name in OF_SEVERAL:
            return OF_SEVERAL[name](*map(exact, self._arguments()))
        if name in _ACCENTS:
            return self._accented(name)
        method = getattr(self, f"_read_{name}", None) if name.isalpha() else None
        if method is None:
            raise UnreadableError(f"the command \\{name} is not known")
        value: sympy.Expr = method()
        return value

    def _function(self, name: str) -> sympy.Expr:
        """``\\sin^2 x``, ``\\tan^{-1} 1``, ``\\log_2 8``, ``\\ln(x)``, ``\\sin 2x``."""
        base, exponent = None, None
        for _ in range(2):
            if name == "log" and base is None and self._take("_"):
                base = self._argument()
            if exponent is None and self._take("^"):
                exponent = self._script()
        if exponent == -1 and name in INVERSE:
            name, exponent = INVERSE[name], None
        if self._is("(", "{", "|", "["):
            argument = self._atom()
            if self._degree_follows() if self._is("^") else False:
                argument = self._raised(argument)
        else:
            argument = self._bare_argument()
        if name in ("ln", "log", "lg") and argument == 0:
            raise UnreadableError("it is the logarithm of zero")
        value = sympy.log(argument) / sympy.log(base) if base is not None else FUNCTIONS[name](argument)
        return value if exponent is None else power(value, exponent)

    def _bare_argument(self) -> sympy.Expr:
        """``2x`` of ``\\sin 2x``: a product without signs up to the next function."""
        value = self._signed()
        while self._begins_factor() and not self._is(*FUNCTIONS, "(", "["):
            if (token := self._peek()) is not None and token.kind == "number":
                break
            value = value * self._power()
        if self._is("/") and value.free_symbols == set() and value.has(sympy.pi):
            self._at += 1
            value = self._quotient(value, self._power())
        return value

    def _accented(self, name: str) -> sympy.Expr:
        r"""``\vec{a}`` is a symbol of its own, ``\overline{AB}`` is the segment ``AB``."""
        letters = self._name()
        if name == "overline" and len(letters) == 2 and letters.isupper():
            return sympy.Symbol(letters[0]) * sympy.Symbol(letters[1])
        return sympy.Symbol(f"{name}({letters}){self._subscript()}")

    def _name(self) -> str:
        """The letters of ``{ABC}``, ``ABC`` or ``A``."""
        braced = self._take("{")
        letters = ""
        while (token := self._peek()) is not None and (
            token.kind in ("letter", "run", "word") or (token.kind == "number" and braced) or token.text in ("_", "'")
        ):
            letters += token.text
            self._at += 1
            if not braced and token.kind != "letter":
                break
        if braced:
            self._expect("}")
        if not letters:
            raise UnreadableError("a name is missing")
        return letters

    def _read_triangle(self) -> sympy.Expr:
        return sympy.Symbol("triangle " + "".join(sorted(self._name())))

    def _read_angle(self) -> sympy.Expr:
        name = self._name()
        return sympy.Symbol("angle " + min(name, name[::-1]))

    _read_measuredangle = _read_angle

    def _read_frac(self) -> sympy.Expr:
        above = self._argument()
        return self._quotient(above, self._argument())

    def _read_sqrt(self) -> sympy.Expr:
        root: sympy.Expr = sympy.Integer(2)
        if self._take("["):
            root = self._enclosed("]")
            if root == 0:
                raise UnreadableError("it is a root of degree zero")
        under = self._atom() if self._is("(", "{") else self._argument()
        return power(under, 1 / root)

    def _read_binom(self) -> sympy.Expr:
        if self._is("("):
            return binomial(*self._arguments())
        above = self._argument()
        return binomial(above, self._argument())

    def _read_pi(self) -> sympy.Expr:
        return sympy.pi

    def _read_infty(self) -> sympy.Expr:
        return sympy.oo

    def _read_exp(self) -> sympy.Expr:
        return power(sympy.E, self._atom() if self._is("(", "{", "[") else self._bare_argument())

    def _read_lfloor(self) -> sympy.Expr:
        return sympy.floor(self._enclosed("rfloor"))

    def _read_lceil(self) -> sympy.Expr:
        return sympy.ceiling(self._enclosed("rceil"))

    def _read_sum(self) -> sympy.Expr:
        return self._repeated(sympy.Add)

    def _read_prod(self) -> sympy.Expr:
        return self._repeated(sympy.Mul)

    def _repeated(self, together: Callable[..., Any]) -> sympy.Expr:
        """A finite sum or product between given numbers, term by term."""
        self._expect("_")
        self._expect("{")
        index, first = sympy.Symbol(self._name()), None
        self._expect("=")
        first = self.sum()
        self._expect("}")
        self._expect("^")
        last = self._script()
        term = self._term()
        if not (first.is_Integer and last.is_Integer and -1 <= last - first <= 500):
            raise UnreadableError("a sum without given ends, or a long one, is not computed")
        if (last - first) * (term.count_ops() + 1) > 1500:
            raise UnreadableError("a long sum is not computed")
        return together(*(term.subs(index, n) for n in range(int(first), int(last) + 1)))

    def _read_lim(self) -> sympy.Expr:
        self._expect("_")
        self._expect("{")
        variable = sympy.Symbol(self._name())
        self._expect("to")
        target = self.sum()
        side = "+-" if not self._take("^") else ("+" if self._take("+") else "-" if self._take("-") else "")
        self._expect("}")
        term = self._term()
        towers = [p for p in term.atoms(sympy.Pow) if variable in p.exp.free_symbols]
        if not side or term.count_ops() > 25 or len(towers) > 1:
            raise UnreadableError("a limit is too long to compute")
        return sympy.limit(term, variable, target, side)

    def _read_int(self) -> sympy.Expr:
        """The definite integral of a polynomial."""
        self._expect("_")
        lower = self._argument() if not self._is("{") else self._atom()
        self._expect("^")
        upper = self._argument() if not self._is("{") else self._atom()
        end = next((i for i in range(len(self._tokens) - 1, self._at, -1) if _is_differential(self._tokens, i)), None)
        if end is None:
            raise UnreadableError("an integral has no differential")
        token = self._tokens[end]
        if token.kind == "run":  # 'dx', 'xdx'
            body = [*self._tokens[self._at : end], *([Token("run", token.text[:-2])] if token.text[:-2] else [])]
            variable = token.text[-1]
        else:
            body, variable = [*self._tokens[self._at : end - 1]], token.text
        inner, x = expression(body), sympy.Symbol(variable)
        self._at = end + 1
        if not inner.is_polynomial(x) or sympy.degree(inner, x) > 50:
            raise UnreadableError("the integral of what is no polynomial is not computed")
        return sympy.integrate(sympy.expand(inner), (x, lower, upper))


def _spelled(token: Token) -> str:
    return f"\\{token.text}" if token.kind == "command" and token.text.isalpha() else token.text


def _is_differential(tokens: Sequence[Token], at: int) -> bool:
    token = tokens[at]
    if token.kind == "run":
        return len(token.text) >= 2 and token.text[-2] == "d"
    return token.kind == "letter" and tokens[at - 1].kind == "letter" and tokens[at - 1].text == "d"


_STARTS = frozenset(name.removeprefix("_read_") for name in vars(_Parser) if name.startswith("_read_")) | _ACCENTS
