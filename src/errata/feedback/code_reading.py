"""Which part of a completion is its program, and whether what it printed or returned is what a test expects."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

__all__ = ["first_difference", "read_code", "same_output", "same_value"]

_PYTHON = frozenset(
    ("python", "python3", "python2", "py", "py3", "pypy", "pypy3", "python3.11", "python3.10", "cpython")
)
_FENCE = re.compile(r"^(?P<indent>[ \t>]*)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
_NOT_THE_PROGRAM = re.compile(
    r"\b(?:examples?|usage|tests?|testing|try it|run it|demo|sample|how to (?:run|use)|outputs?|inputs?|prints|verify|check)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Block:
    language: str
    code: str
    before: str
    """The last line of text before the block."""


def read_code(text: str, function: str = "") -> tuple[str | None, str]:
    """The program of a completion, its last Python code block; or ``None`` and what is wrong.

    Passed over are blocks that are empty, of another language, or of no language and no program (a sample of output),
    examples of use behind the program, and, where a ``function`` is to be written, blocks that do not define it.
    """
    blocks = list(_blocks(text))
    filled = [b for b in blocks if b.code.strip()]
    labelled = [b for b in filled if b.language in _PYTHON]
    bare = [b for b in filled if not b.language]
    candidates = [b for b in filled if b in labelled or (b in bare and (_does_something(b.code) or not labelled))]
    if not any(b in labelled or _does_something(b.code) for b in candidates):
        candidates = candidates[-1:]
    elif not labelled:
        candidates = [b for b in candidates if _does_something(b.code)]
    if function:
        candidates = [b for b in candidates if _defines(b.code, function)] or candidates
    while len(candidates) > 1 and _is_example(candidates[-1]):
        candidates.pop()
    if candidates:
        return candidates[-1].code, ""
    if any(b.language in _PYTHON or not b.language for b in blocks):
        return None, "the code block is empty"
    return None, "there is no Python code block" if blocks else "there is no code block"


def _blocks(text: str) -> Iterator[_Block]:
    """All fenced code blocks, by backticks or tildes, indented or not; one that is never closed goes to the end."""
    lines = text.replace("\r\n", "\n").split("\n")
    opened: re.Match[str] | None = None
    code: list[str] = []
    before = last = ""
    for line in [*lines, None]:
        mark = _FENCE.match(line) if line is not None else None
        if opened is None:
            if mark:
                opened, code, before = mark, [], last
            elif line and line.strip():
                last = line
            continue
        closes = mark is not None and mark["fence"].startswith(opened["fence"])
        ends = line is not None and not mark and _ends_with_fence(line, opened["fence"])
        if ends and line is not None:
            code.append(line.rstrip()[: -len(opened["fence"])])
        if line is None or closes or ends:
            language = opened["info"].strip().partition(" ")[0].strip("{}.").lower()
            yield _Block(language, _dedented(code, opened["indent"]), before)
            again = closes and mark is not None and mark["info"].strip().lower() in _PYTHON
            opened, code, before, last = (mark if again else None), [], last, ""
        else:
            code.append(line)


def _ends_with_fence(line: str, fence: str) -> bool:
    """Whether a line of code ends with the fence that closes its block, and not with one in quotes or a comment."""
    bare = line.rstrip()
    head = bare[: -len(fence)]
    return (
        bare.endswith(fence)
        and bool(head.strip())
        and fence not in head
        and head[-1] not in "'\"`#"
        and "#" not in head
    )


def _dedented(lines: list[str], indent: str) -> str:
    return "".join((line.removeprefix(indent) if indent else line) + "\n" for line in lines)


def _does_something(code: str) -> bool:
    """Whether a text is a program rather than a sample of input or output: it has a statement or a call."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return bool(
            re.search(r"^\s*(?:import|from|def|class|for|while|if)\b.*|\bprint\s*\(|\binput\s*\(", code, re.MULTILINE)
        )
    return any(not isinstance(node, ast.Expr) or _is_call(node.value) for node in tree.body)


def _is_call(node: ast.expr) -> bool:
    """Whether an expression calls what programs call: ``print(6)``, ``sys.stdout.write("6")``, but not ``O(n)``."""
    if not isinstance(node, ast.Call):
        return False
    return isinstance(node.func, ast.Attribute) or (isinstance(node.func, ast.Name) and len(node.func.id) > 2)


def _defines(code: str, function: str) -> bool:
    name = re.escape(function)
    return bool(re.search(rf"\bdef\s+{name}\b|^\s*{name}\s*(?::[^=\n]*)?=", code, re.MULTILINE))


def _is_example(block: _Block) -> bool:
    """Whether a block behind the program shows its use: the line before says so, and it reads no input."""
    heading = block.before.strip()
    return bool(
        len(heading) < 80
        and _NOT_THE_PROGRAM.search(heading)
        and not re.search(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0", block.code)
    )


# -- Comparison --

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,6})?|[+-]?inf(?:inity)?", re.ASCII | re.IGNORECASE)


def same_output(expected: str, got: str, tolerance: float = 0.0) -> bool:
    """Whether outputs agree line by line without outer white space, numbers by their decimal value.

    ``tolerance`` is the difference allowed, absolute or relative, where the expected number is no whole one: it is
    written with a point or an exponent.
    """
    ours, theirs = _lines(got), _lines(expected)
    return len(ours) == len(theirs) and all(_same_line(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))


def _lines(text: str) -> list[str]:
    return text.strip().split("\n")


def _same_line(got: str, expected: str, tolerance: float) -> bool:
    if got.strip() == expected.strip():
        return True
    ours, theirs = got.split(), expected.split()
    if len(ours) != len(theirs):
        return False
    numbers = [bool(_NUMBER.fullmatch(a) and _NUMBER.fullmatch(b)) for a, b in zip(ours, theirs, strict=True)]
    if not all(numbers) and (re.sub(r"\S+", "", got.strip()) != re.sub(r"\S+", "", expected.strip()) or _nan(theirs)):
        return False  # beside words white space counts
    return all(
        _same_number(Decimal(a), Decimal(b), tolerance if re.search("[.eE]", b) else 0.0) if is_number else a == b
        for a, b, is_number in zip(ours, theirs, numbers, strict=True)
    )


def _nan(tokens: list[str]) -> bool:
    return any("nan" in token.lower() for token in tokens)


def _same_number(got: Decimal, expected: Decimal, tolerance: float) -> bool:
    if got == expected:
        return True
    if not (tolerance and got.is_finite() and expected.is_finite()):
        return False
    if max(got.adjusted(), expected.adjusted()) > 300:
        return False
    return abs(float(got) - float(expected)) <= tolerance * max(1.0, abs(float(expected)))


def same_value(expected: str, got: str, tolerance: float = 0.0) -> bool:
    """Whether two JSON values agree: 1 is 1.0 but not true; ``tolerance`` as for :func:`same_output`."""
    try:
        a, b = (json.loads(text, parse_int=_whole) for text in (got, expected))
        return _same(a, b, tolerance)
    except (ValueError, RecursionError):
        return False


def _whole(digits: str) -> Any:
    return int(digits) if len(digits) < 4000 else Decimal(digits)  # more than Python turns into an int


def _same(got: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(got, bool) or isinstance(expected, bool):
        return got is expected
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(_same(a, b, tolerance) for a, b in zip(got, expected, strict=True))
    if isinstance(got, dict) and isinstance(expected, dict):
        return got.keys() == expected.keys() and all(_same(got[k], expected[k], tolerance) for k in got)
    if isinstance(expected, float) and isinstance(got, int | float) and tolerance:
        try:
            return got == expected or abs(got - expected) <= tolerance * max(1.0, abs(expected))
        except OverflowError:
            return False
    return bool(got == expected)


def first_difference(expected: str, got: str, tolerance: float = 0.0) -> str:
    """Where outputs of several lines differ first; empty for a single line."""
    ours, theirs = _lines(got), _lines(expected)
    if max(len(ours), len(theirs)) < 4:
        return ""
    pairs = zip(ours, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs, start=1) if not _same_line(a, b, tolerance)), None)
    if at is not None:
        return f"line {at}: {_short(theirs[at - 1])} was expected, {_short(ours[at - 1])} was printed"
    return f"{len(theirs)} lines were expected, {len(ours)} were printed"


def _short(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:57] + "...")
