"""Environments and tools whose failures cost a rollout and never the run.

TRL calls an environment's ``reset`` and methods in the trainer's own thread. Here each call has a time limit, and what it
returns is checked. A method that raises is an answer to the policy, as with TRL. A rollout is not judged if its environment
cannot be reset, takes too long, loses its connection or ends the process.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from errata.feedback.sandbox import time_limit

T = TypeVar("T")

MOST_CHARACTERS = 20_000
"""Of one answer; the middle of a longer one is cut, before it is tokenised."""

_LOST = (ConnectionError, EOFError, TimeoutError)
"""Errors after which the state of an environment is not known."""
_ERROR = "_errata_error"


class Environment(Protocol):
    """What TRL asks of an environment; its other public methods are tools."""

    def reset(self, **row: object) -> object: ...


def failure(environment: object) -> str:
    """Why the rollout of this environment cannot be judged; empty if it can."""
    return str(getattr(environment, _ERROR, ""))


def lose(environment: object, method: str, error: BaseException) -> None:
    """Note that the state of an environment is not known since a method failed: its rollout is not judged."""
    setattr(environment, _ERROR, f"{method}: {_describe(error)}")


def guarded(factory: Callable[[], object], timeout_s: float | None) -> Callable[[], object]:
    """A factory of the same environments, as instances of a subclass whose calls cannot stop the run.

    Args:
        factory: a class, or a function that returns an instance.
        timeout_s: seconds for each call of a method; ``None`` calls it in the trainer's thread without a limit.
    """
    classes: dict[type, type] = {}

    @functools.wraps(factory, updated=())
    def make() -> object:
        environment = factory()
        kind = type(environment)
        if kind not in classes:
            classes[kind] = _subclass(kind, factory, timeout_s)
        environment.__class__ = classes[kind]
        return environment

    return make


def guarded_tool(tool: Callable[..., object], timeout_s: float | None) -> Callable[..., object]:
    """The same function with a time limit and an answer of bounded length; errors reach TRL, which tells them to the policy."""
    if inspect.iscoroutinefunction(tool):

        @functools.wraps(tool)
        async def call_async(*args: object, **kwargs: object) -> object:
            return answer(await asyncio.wait_for(tool(*args, **kwargs), timeout_s))

        return call_async

    @functools.wraps(tool)
    def call(*args: object, **kwargs: object) -> object:
        return answer(within(timeout_s, tool, *args, **kwargs))

    return call


def guard_worlds(kwargs: dict[str, Any], timeout_s: float | None) -> None:
    """Replace TRL's ``tools`` and ``environment_factory`` by ones whose failures cannot stop the run."""
    if kwargs.get("tools"):
        kwargs["tools"] = [guarded_tool(tool, timeout_s) for tool in kwargs["tools"]]
    given = kwargs.get("environment_factory")
    if isinstance(given, Mapping):
        kwargs["environment_factory"] = {name: guarded(factory, timeout_s) for name, factory in given.items()}
    elif given is not None:
        kwargs["environment_factory"] = guarded(given, timeout_s)


def answer(value: object) -> object:
    """What a tool returned, as text of bounded length; a list of content parts is left as it is."""
    if isinstance(value, list) and all(isinstance(part, Mapping) and "type" in part for part in value):
        return value
    text = value if isinstance(value, str) else str(value)
    text = text.encode("utf-8", "replace").decode()  # half of a character cannot be tokenised or written
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"


def within(timeout_s: float | None, function: Callable[..., T], *args: object, **kwargs: object) -> T:
    """The function's value. Raises what it raises, ``RuntimeError`` if it exits, ``TimeoutError`` if it takes too long."""
    try:
        return time_limit.within(timeout_s, function, *args, **kwargs)
    except time_limit.TooLongError as error:
        raise TimeoutError(str(error)) from None
    except SystemExit as error:
        raise RuntimeError(f"exits with {error.code!r}") from error


def _subclass(kind: type, factory: Callable[[], object], timeout_s: float | None) -> type:
    members: dict[str, object] = {"reset": _reset(kind.reset, factory, timeout_s)}  # type: ignore[attr-defined]
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if name == "_reply" or (name not in ("reset", "get_reward") and not name.startswith("_")):
            members[name] = _method(method, timeout_s, is_tool=name != "_reply")
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__, **members})


def _method(method: Callable[..., object], timeout_s: float | None, *, is_tool: bool) -> Callable[..., object]:
    call = guarded_tool(method, timeout_s) if is_tool else functools.partial(within, timeout_s, method)
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def act_async(self: object, *args: object, **kwargs: object) -> object:
            try:
                found: object = await call(self, *args, **kwargs)  # type: ignore[misc]
                return found
            except _LOST as error:
                lose(self, method.__name__, error)
                raise

        return act_async

    @functools.wraps(method)
    def act(self: object, *args: object, **kwargs: object) -> object:
        try:
            return call(self, *args, **kwargs)
        except _LOST as error:
            lose(self, method.__name__, error)
            raise

    return act


def _reset(
    reset: Callable[..., object], factory: Callable[[], object], timeout_s: float | None
) -> Callable[..., object]:
    @functools.wraps(reset)
    def start(self: object, **row: object) -> object:
        try:
            if failure(self):  # its state is not known: begin with a new one
                fresh = within(timeout_s, factory)
                vars(self).clear()
                vars(self).update(vars(fresh))
            shown = within(timeout_s, reset, self, **row)
            if shown is None or isinstance(shown, str):
                return None if shown is None else answer(shown)
            if isinstance(shown, list) and all(isinstance(part, Mapping) and "type" in part for part in shown):
                return shown
            raise TypeError(f"returned {shown!r:.80}; it must be a text, None or a list of content parts")
        except Exception as error:
            setattr(self, _ERROR, f"reset: {_describe(error)}")
            return None

    return start


def _describe(error: BaseException) -> str:
    said = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
