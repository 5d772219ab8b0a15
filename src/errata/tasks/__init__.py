"""Problem sets: rows in one schema, each with the verifier that judges an attempt.

``load("rulebook/new-rule")`` gives a ``datasets.Dataset`` with the columns ``problem_id`` (stable), ``prompt`` (chat
messages), ``answer``, ``reference`` (a right solution or ``None``), ``task``, and the task's own;
``verifier("rulebook/new-rule")`` the function that judges attempts at it. Each module below has the two functions
``load(name, path, split, strict=True)`` and ``verifier(name, **args)`` and is imported when first asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from errata.records import Verdict

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Verifier", "load", "names", "verifier"]

Verifier = Callable[..., list[Verdict]]
"""Called like a TRL reward function, ``verifier(prompts=..., completions=..., **columns)``: one verdict each."""

_MODULES: dict[str, str] = {
    "rulebook/sharpen": "errata.tasks.rulebook",
    "rulebook/new-rule": "errata.tasks.rulebook",
    "sciknoweval/biology": "errata.tasks.sciknoweval",
    "sciknoweval/chemistry": "errata.tasks.sciknoweval",
    "sciknoweval/materials": "errata.tasks.sciknoweval",
    "sciknoweval/physics": "errata.tasks.sciknoweval",
    "tooluse": "errata.tasks.tooluse",
    "livecodebench/v6": "errata.tasks.livecodebench",
    "math": "errata.tasks.math",
}


def names() -> tuple[str, ...]:
    """Every task's name, without importing any of them."""
    return tuple(_MODULES)


def load(name: str, *, path: str | None = None, split: str = "train", strict: bool = True) -> Dataset:
    """The rows of one split of a task. ``path`` is where its files lie, for tasks that read files.

    Raises ``ValueError`` for an unknown task or split, and whatever the task says of its files: a row that cannot be used
    by file, line and mend. ``strict=False`` leaves such rows out and logs in one line how many, and what was wrong with
    the first.
    """
    dataset: Dataset = _module(name).load(name, path, split, strict=strict)
    return dataset


def verifier(name: str, **args: Any) -> Verifier:
    """The function that judges attempts at the task; ``args`` are its own settings.

    Raises ``ValueError`` for an unknown task or setting.
    """
    judge: Verifier = _module(name).verifier(name, **args)
    return judge


def _module(name: str) -> ModuleType:
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(_MODULES)}"
        raise ValueError(f"name: no task {name!r}; {hint}")
    return import_module(_MODULES[name])
