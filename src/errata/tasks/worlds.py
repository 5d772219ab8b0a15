"""Worlds of other packages that a policy talks with in plain messages: what their adapters share.

A world is an environment of a rollout. ``reset(**row)`` begins it and may return a text that is added to the prompt.
``_reply(text)`` is given what the policy said and returns what the world says next, ``None`` at its end. ``_verdict()`` is read
when the rollout is over. The last two have an underscore because TRL offers public methods to the policy as tools.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Coroutine, Sequence
from functools import cache
from typing import Any, Protocol

from errata.records import Verdict

__all__ = ["World", "WorldVerifier", "arguments_of", "need", "one_line", "run_in_loop"]


class World(Protocol):
    """An environment that answers messages and judges the rollout."""

    def reset(self, **row: Any) -> str | None: ...

    def _reply(self, text: str) -> str | None: ...

    def _verdict(self) -> Verdict: ...


class WorldVerifier:
    """What each rollout's world says of it."""

    def __init__(self) -> None:
        self.__name__ = "world"  # TRL logs a reward function by its name

    def __call__(self, completions: Sequence[Any], environments: Sequence[World], **columns: Any) -> list[Verdict]:
        return [environment._verdict() for environment in environments]


def need(package: str, extra: str) -> None:
    """Raises ``ValueError`` with the mend where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"task: it needs the package {package}; pip install 'errata[{extra}]'")


def arguments_of(name: str) -> tuple[str, dict[str, Any]]:
    """``"wordle?max_turns=3&hard=true"`` is ``("wordle", {"max_turns": 3, "hard": True})``; values are read as YAML.

    Raises ``ValueError`` for an argument without a value.
    """
    import yaml

    rest, _, query = name.partition("?")
    found: dict[str, Any] = {}
    for part in query.split("&") if query else []:
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ValueError(f"task: {name!r}: {part!r} must be written as NAME=VALUE")
        found[key] = yaml.safe_load(value)
    return rest, found


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="worlds", daemon=True).start()
    return loop


def run_in_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """The future of a coroutine in the thread in which all worlds' coroutines run."""
    return asyncio.run_coroutine_threadsafe(work, _loop())


def one_line(error: object) -> str:
    """An exception's kind and the first words of what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
