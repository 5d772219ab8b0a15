"""What each part of the laboratory returns: computed claims, their numbers, pictures and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

COLOURS: Mapping[str, str] = {
    "forward_ce": "#3b82f6",
    "kl": "#14b8a6",
    "reverse_kl": "#e0562f",
    "js": "#c98a00",
    "reward": "#9a6bd6",
    "other": "#8a8a8a",
}
"""The colour of each objective in all pictures; readable on white and on black."""
NAMES: Mapping[str, str] = {"forward_ce": "forward CE", "reverse_kl": "reverse KL", "js": "Jensen–Shannon"}
OBJECTIVES = tuple(NAMES)


@dataclass(frozen=True)
class Claim:
    """One row of the table."""

    statement: str
    assumption: str
    """The assumption of the statement; for a counter-example, the assumption that is missing."""
    holds: bool
    """The computed result."""
    numbers: str
    """The numbers that decide it, as text."""
    expected: bool = True
    """``False`` for a counter-example. ``errata theory`` exits with 1 if ``holds`` differs from it."""


@dataclass(frozen=True)
class Picture:
    """A figure with one or more panels side by side."""

    name: str
    """File name without suffix."""
    caption: str
    panels: tuple[Callable[[Any], None], ...]
    """Each draws on a matplotlib ``Axes``."""


@dataclass(frozen=True)
class Table:
    """A table of numbers."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Part:
    """One of the six parts."""

    title: str
    about: str
    """The module's docstring: statement, assumption, computation."""
    claims: tuple[Claim, ...]
    numbers: Mapping[str, Any]
    """Merged into the object that ``errata theory --json`` prints."""
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...] = ()
