"""Problem sets: rows in one schema, each set with its verifier.

``load("rulebook/new-rule")`` returns a ``datasets.Dataset`` with the columns ``problem_id`` (stable), ``prompt`` (chat
messages), ``answer``, ``reference`` (a right solution or ``None``), ``task``, and columns of the task's own.
``verifier("rulebook/new-rule")`` returns the task's verifier. Each module below has the two functions
``load(name, path, split, strict=True)`` and ``verifier(name, **args)``, and is imported at its first use. A task of several
turns has a third, ``environment(name)``: the class whose instances its rollouts act in.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

from errata.records import Verdict
from errata.validate import check_settings

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Verifier", "environment", "load", "names", "verifier"]

Verifier = Callable[..., list[Verdict]]
"""Called like a TRL reward function, ``verifier(prompts=..., completions=..., **columns)``: one verdict each."""

_INSTRUCTIONS = ("length", "include", "exclude", "order", "case", "json", "mixed")
_MODULES: dict[str, str] = {
    "rulebook/sharpen": "errata.tasks.rulebook",
    "rulebook/new-rule": "errata.tasks.rulebook",
    "rulebook/two-signals": "errata.tasks.rulebook",
    "sciknoweval/biology": "errata.tasks.sciknoweval",
    "sciknoweval/chemistry": "errata.tasks.sciknoweval",
    "sciknoweval/materials": "errata.tasks.sciknoweval",
    "sciknoweval/physics": "errata.tasks.sciknoweval",
    "drawers": "errata.tasks.drawers",
    "tooluse": "errata.tasks.tooluse",
    "livecodebench/v6": "errata.tasks.livecodebench",
    "math": "errata.tasks.math",
    "programs": "errata.tasks.programs",
    **{f"instructions/{kind}": "errata.tasks.instructions" for kind in _INSTRUCTIONS},
}
_FAMILIES = {
    "inspect/": "errata.tasks.inspect",
    "reasoning-gym/": "errata.tasks.reasoning_gym",
    "verifiers:": "errata.tasks.verifiers_env",
    "textarena:": "errata.tasks.textarena",
    "openenv:": "errata.tasks.openenv",
    "openreward:": "errata.tasks.openreward",
}
"""Tasks named by a family and a name that the family's module knows, with arguments: ``reasoning-gym/chain_sum?max_terms=2``,
``inspect/mine.py:my_task``."""


def names() -> tuple[str, ...]:
    """Every task's name, without importing any of them; of a family its beginning with ``NAME``."""
    return (*_MODULES, *(f"{family}NAME" for family in _FAMILIES))


def load(name: str, *, path: str | None = None, split: str = "train", strict: bool = True) -> Dataset:
    """The rows of one split of a task.

    Args:
        name: one of :func:`names`.
        path: the file or folder of the rows, for tasks that read files.
        split: ``train`` or ``test``.
        strict: ``False`` leaves out rows that cannot be used, and logs in one line how many, and what was wrong with the
            first.
    Raises:
        ValueError: an unknown task or split, a missing file, or a row that cannot be used, with its file and line.
    """
    dataset: Dataset = _module(name).load(name, path, split, strict=strict)
    return dataset


def verifier(name: str, **args: Any) -> Verifier:
    """The task's verifier; ``args`` are the verifier's settings.

    Raises ``ValueError`` for an unknown task or setting.
    """
    make = _module(name).verifier
    # A task's function returns a verifier of the class it is annotated with, and hands its settings on to it.
    check_settings(get_type_hints(make)["return"], args, "task_args: ")
    judge: Verifier = make(name, **args)
    return judge


def environment(name: str) -> type | None:
    """The class whose instances a task's rollouts act in; ``None`` for a task of one turn.

    Raises ``ValueError`` for an unknown task.
    """
    make = getattr(_module(name), "environment", None)
    found: type | None = None if make is None else make(name)
    return found


def _module(name: str) -> ModuleType:
    for family, module in _FAMILIES.items():
        if name.startswith(family) and name != family:
            return import_module(module)
    if name not in _MODULES:
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(names())}"
        raise ValueError(f"name: no task {name!r}; {hint}")
    return import_module(_MODULES[name])
