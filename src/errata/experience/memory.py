"""What the trainer asks of a method's memory: to observe each batch, and to be saved with every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from errata.records import Group


class Memory(Protocol):
    """State that a method keeps across steps. ``Experience`` is the built-in one; a class of your own needs these four.

    Every process holds its own copy and observes the same groups in the same order, so that all copies stay equal.
    """

    def observe(self, groups: Iterable[Group], *, step: int) -> None:
        """Take in the groups of all processes of one generation batch, before contexts are chosen and signals decided."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state, JSON-serialisable."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the memory that wrote ``state``. Raises ``ValueError`` where that is another kind of memory."""

    def metrics(self) -> Mapping[str, float]:
        """Numbers for the step's log."""
