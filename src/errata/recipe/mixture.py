"""Several tasks in one run: the recipe's ``tasks``, their rows in the shares that their weights say, and their verifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, concatenate_datasets, interleave_datasets

from errata import tasks
from errata.recipe.config import ErrataConfig
from errata.validate import Positive, check, nearest

_KEYS = ("name", "weight", "args", "path")


@dataclass(frozen=True)
class Part:
    """One task of a mixture."""

    name: str
    weight: float = 1.0
    """Its share of the problems of an epoch, relative to the other weights."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its verifier."""
    path: str | None = None
    """Where its rows are."""


def parts_of(config: ErrataConfig) -> list[Part]:
    """The tasks of a recipe's ``tasks``; none where there is only ``task``.

    Raises ``ValueError`` naming the entry and the mend.
    """
    given = config.tasks
    if given is None:
        return []
    if config.task is not None:
        raise ValueError("tasks: task names another one; put it into tasks as well, or leave out one of the two")
    entries = [{"name": k, **_as_mapping(v)} for k, v in given.items()] if isinstance(given, dict) else given
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"tasks: must be a list of tasks such as [{{name: math, weight: 2}}], got {given!r:.80}")
    found = [_part(number, entry) for number, entry in enumerate(entries)]
    names = [part.name for part in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"tasks: {name} is named twice; give it once, with the sum of the weights")
    return found


def rows_of_mixture(config: ErrataConfig, *, split: str, seed: int, shuffled: bool, limit: int | None) -> Dataset:
    """The rows of all tasks, with the union of their columns.

    Args:
        shuffled: draw rows by the tasks' weights until each row of each task was drawn at least once: rows of small tasks
            then occur several times. ``False``: each row once, task by task.
        limit: only the first so many rows of each task.
    Raises:
        ValueError: as ``errata.tasks.load``; columns of one name that hold different types.
    """
    parts = parts_of(config)
    acts = any(tasks.environment(part.name) is not None for part in parts)
    sets = []
    for part in parts:
        rows = tasks.load(part.name, path=part.path or config.task_path, split=split, strict=config.strict)
        rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
        named = "task" in rows.column_names
        rows = rows if named else rows.add_column("task", [part.name] * len(rows))
        if acts and config.environment is None:
            rows = rows.add_column("environment", [part.name] * len(rows))
        sets.append(rows)
    try:
        if not shuffled or len(sets) == 1:
            return concatenate_datasets(sets)
        total = sum(part.weight for part in parts)
        shares = [part.weight / total for part in parts]
        return interleave_datasets(_with_all_columns(sets), shares, seed=seed, stopping_strategy="all_exhausted")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"tasks: their rows cannot be put together: {' '.join(str(error).split())[:300]}; give columns of one name one type"
        ) from error


def _with_all_columns(sets: Sequence[Dataset]) -> list[Dataset]:
    """The same rows with the columns of all sets, ``None`` where a set has none of that name."""
    features = concatenate_datasets([rows.select([0]) for rows in sets]).features
    full = []
    for rows in sets:
        for name in features:
            if name not in rows.column_names:
                rows = rows.add_column(name, [None] * len(rows))
        full.append(rows.select_columns(list(features)).cast(features))
    return full


def _part(number: int, entry: Any) -> Part:
    where = f"tasks, entry {number}"
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise ValueError(f"{where}: must have a name, e.g. {{name: math, weight: 2}}, got {entry!r:.80}")
    for key in entry:
        if key not in _KEYS:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(str(key), _KEYS)}")
    part = Part(**{key: value for key, value in entry.items() if value is not None})
    check(f"{where}, weight", part.weight, Positive)
    check(f"{where}, args", part.args, dict[str, Any])
    check(f"{where}, path", part.path, str | None)
    return part


def _as_mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"weight": value}
