"""What the experience classes accept; every refusal names the argument and the mend."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any


def problem_id_of(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"problem_id: must be the task's stable, non-empty string, got {value!r}")
    return value


def whole(name: str, value: Any, *, least: int = 0) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name}: must be at least {least}, got {number}")
    return number


def finite(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: must be a number, got {value!r}") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{name}: must be a finite number in [{low:g}, {high:g}], got {value!r}")
    return number


def saved_by(state: Mapping[str, Any], *names: str, **settings: Any) -> None:
    """Refuse a state that lacks one of ``names`` or was saved under settings that change what its numbers mean."""
    for name in (*settings, *names):
        if name not in state:
            raise ValueError(f"state: has no {name!r}; was it written by another class?")
    for name, here in settings.items():
        if state[name] != here:
            raise ValueError(f"state: was saved with {name}={state[name]!r}, but this one has {here!r}; use the same")
