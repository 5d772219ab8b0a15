"""The one place where settings are checked: each value against the type and the range that its field declares.

A field says what it accepts by its annotation, and ``Annotated`` adds a range: ``discount: Annotated[float, Range(0, 1)]``.
Every float must be finite. This module imports neither torch nor transformers, so that settings are checked before them.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Range:
    """A range of numbers; infinity itself is never in it."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    """Whether ``low`` itself is left out."""
    also: float | None = None
    """One further value that is accepted."""

    def __contains__(self, value: float) -> bool:
        return value == self.also or (self.low <= value <= self.high and not (self.above and value == self.low))

    def __str__(self) -> str:
        if self.high < math.inf:
            words = f"in {'(' if self.above else '['}{self.low:g}, {self.high:,g}]"
        elif self.low > -math.inf:
            words = f"above {self.low:g}" if self.above else f"of at least {self.low:g}"
        else:
            words = ""
        return words if self.also is None else f"{words}, or {self.also:g}"


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
TopK = Annotated[int, Range(1, 1_000_000)]
"""More tokens than any vocabulary has are a mistake."""


def check(name: str, value: object, hint: Any) -> None:
    """Raise ``ValueError`` naming the setting and what it must be, unless ``value`` is of the type ``hint``.

    A type that is not understood accepts everything but NaN and infinity.
    """
    wanted = _refused(value, hint)
    if wanted is not None and wanted.startswith("one of "):
        raise ValueError(f"{name}: {_shown(value)} is none of {wanted.removeprefix('one of ')}")
    if wanted is not None:
        raise ValueError(f"{name}: must be {wanted}, got {_shown(value)}")


def check_settings(kind: Callable[..., Any], settings: Mapping[str, Any], where: str = "") -> None:
    """Check keyword arguments of a class or function against its annotations.

    Args:
        kind: a class, a dataclass or a function; private parameters and what ``**kwargs`` takes are not checked.
        where: said before a setting's name in errors, e.g. ``"task_args: "``.
    Raises:
        ValueError: an unknown setting, with the nearest known one, or a value of another type or out of its range.
    """
    hints = hints_of(kind)
    parameters = inspect.signature(kind).parameters
    accepts_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name, value in settings.items():
        if name not in parameters and not accepts_all:
            raise ValueError(f"{where}no setting {name!r}{nearest(str(name), parameters)}")
        check(f"{where}{name}", value, hints.get(name, Any))


def check_file(name: str, path: Path | None) -> None:
    """Raises ``ValueError`` unless ``path`` can be a file: it is no directory, and lies in a directory that exists."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ValueError(f"{name}: {path} must be a file in an existing directory")


def hints_of(kind: Any) -> dict[str, Any]:
    """The annotations of a class's fields or a callable's parameters; none where they name what does not exist."""
    try:
        if is_dataclass(kind):
            found = get_type_hints(kind, include_extras=True)
            return {f.name: found[f.name] for f in fields(kind) if f.init}
        return get_type_hints(
            inspect.getattr_static(kind, "__init__") if isinstance(kind, type) else kind, include_extras=True
        )
    except (NameError, TypeError, AttributeError):
        return {}


def is_plain(hint: Any) -> bool:
    """Whether a type is a number or a truth value, or null. Texts of a library's settings may stand for other types too."""
    kinds = {hint} if get_origin(hint) is None else set(get_args(hint))
    return kinds <= {bool, int, float, type(None)}


def nearest(word: str, known: Iterable[str]) -> str:
    """``", did you mean 'x'?"``, or nothing where no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def wanted(hint: Any) -> str:
    """What a value of the type ``hint`` must be, in the words of the errors; empty where everything is accepted."""
    return _refused(object(), hint) or ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refused(value: object, hint: Any) -> str | None:
    """What ``value`` must be, where it is not of the type ``hint``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        wanted = _refused(value, arguments[0])
        ranges = [r for r in arguments[1:] if isinstance(r, Range)]
        if wanted is None and isinstance(value, int | float) and all(value in r for r in ranges):
            return None
        noun = wanted or ("a whole number" if arguments[0] is int else "a number")
        return " ".join([noun, *map(str, ranges)])
    if origin in (Union, types.UnionType):
        refusals = [_refused(value, kind) for kind in arguments]
        if None in refusals:
            return None
        return ", or ".join(dict.fromkeys(r for r in refusals if r is not None))
    if origin is Literal:
        return None if value in arguments else f"one of {', '.join(map(str, arguments))}"
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        return _refused_list(value, arguments)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return None if isinstance(value, Mapping) else "a mapping"
    return _refused_plain(value, hint)


def _refused_list(value: object, arguments: tuple[Any, ...]) -> str | None:
    if not isinstance(value, list | tuple):
        return "a list"
    if len(arguments) != 1 and arguments[1:] != (...,):
        return None
    wanted = next((w for w in (_refused(v, arguments[0]) for v in value) if w is not None), None)
    return None if wanted is None else f"a list, each entry {wanted}"


def _refused_plain(value: object, hint: Any) -> str | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is int:
        return None if is_number and isinstance(value, int) else "a whole number"
    if hint is float:
        return None if is_number and _finite(value) else "a number"
    if hint is str:
        return None if isinstance(value, str) else "text"
    if hint in (None, type(None)):
        return None if value is None else "null"
    return None if _finite(value) else "finite"


def _finite(value: Any) -> bool:
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:  # a whole number larger than any float
        return False
