"""Environments and tools whose failures cost a rollout and never the run.

TRL calls an environment's ``reset`` and methods in the trainer's own thread. Here each call has a time limit, and what it
returns is checked. A method that raises is an answer to the policy, as with TRL. A rollout is not judged if its environment
cannot be reset, takes too long, loses its connection or ends the process.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from errata.feedback.custom import as_verdicts
from errata.feedback.sandbox import time_limit
from errata.recipe import models
from errata.records import Prompt

T = TypeVar("T")

MOST_CHARACTERS = 20_000
"""Of one answer; the middle of a longer one is cut, before it is tokenised."""

_LOST = (ConnectionError, EOFError, TimeoutError)
"""Errors after which the state of an environment is not known."""
_ERROR = "_errata_error"


@dataclass(frozen=True)
class Reader:
    """What the model can read of what environments and tools return."""

    images: bool = True
    """Whether it reads other content parts than texts."""
    most_tokens: int | None = None
    """Of a prompt with what an environment shows after it; ``None``: no limit is known."""
    tokenize: Callable[[str], Mapping[str, Sequence[int]]] | None = None

    @classmethod
    def of(cls, model: object, processor: object, max_completion_length: int) -> Reader:
        """The reader that a model and its tokenizer or processor make."""
        limit = models.longest_prompt(model, max_completion_length) if hasattr(model, "config") else None
        tokenizer = getattr(processor, "tokenizer", processor)
        return cls(hasattr(processor, "tokenizer"), limit, tokenizer if callable(tokenizer) else None)

    def fits(self, prompt: Prompt, shown: str) -> bool:
        """Whether the prompt with what is shown after it leaves room for an answer."""
        if self.most_tokens is None or self.tokenize is None:
            return True
        text = (prompt if isinstance(prompt, str) else " ".join(str(m.get("content") or "") for m in prompt)) + shown
        if len(text.encode("utf-8", "replace")) < models.fewest_bytes(self.most_tokens):
            return True
        return len(self.tokenize(text)["input_ids"]) <= self.most_tokens

    def answer(self, value: object) -> object:
        """What a tool returned, as text of bounded length; a list of content parts as it is, if the model reads images."""
        if isinstance(value, list) and all(isinstance(part, Mapping) and "type" in part for part in value):
            if self.images:
                return value
            value = "\n".join(str(part.get("text", f"[{part['type']}]")) for part in value)
        return answer(value)


class Environment(Protocol):
    """What TRL asks of an environment; its other public methods are tools."""

    def reset(self, **row: object) -> object: ...


def failure(environment: object) -> str:
    """Why the rollout of this environment cannot be judged; empty if it can."""
    return str(getattr(environment, _ERROR, ""))


def lose(environment: object, method: str, error: BaseException) -> None:
    """Note that the state of an environment is not known since a method failed: its rollout is not judged."""
    object.__setattr__(environment, _ERROR, f"{method}: {_describe(error)}")  # whatever its class does with attributes


def guarded(factory: Callable[[], object], timeout_s: float | None, reader: Reader = Reader()) -> Callable[[], object]:
    """A factory of the same environments, as instances of a subclass whose calls cannot stop the run.

    Args:
        factory: a class, or a function that returns an instance.
        timeout_s: seconds for each call of a method; ``None`` calls it in the trainer's thread without a limit.
        reader: what the model can read; a rollout at whose reset more is shown is not judged.
    Raises:
        ValueError: when called, for a class with ``__slots__`` alone.
    """
    classes: dict[type, type] = {}

    @functools.wraps(factory, updated=())
    def make() -> object:
        environment = factory()
        kind = type(environment)
        if kind not in classes:
            classes[kind] = _subclass(kind, factory, timeout_s, reader)
        try:
            object.__setattr__(environment, "__class__", classes[kind])
        except TypeError:
            raise ValueError(
                f"environment: {kind.__name__} cannot be watched, because its instances take no attributes; leave out __slots__"
            ) from None
        return environment

    return make


def guarded_tool(
    tool: Callable[..., object], timeout_s: float | None, reader: Reader = Reader()
) -> Callable[..., object]:
    """The same function with a time limit and an answer of bounded length; errors reach TRL, which tells them to the policy."""
    if inspect.iscoroutinefunction(tool):

        @functools.wraps(tool)
        async def call_async(*args: object, **kwargs: object) -> object:
            return reader.answer(await asyncio.wait_for(tool(*args, **kwargs), timeout_s))

        return call_async

    @functools.wraps(tool)
    def call(*args: object, **kwargs: object) -> object:
        return reader.answer(within(timeout_s, tool, *args, **kwargs))

    return call


def guard_worlds(kwargs: dict[str, Any], timeout_s: float | None, reader: Reader) -> None:
    """Replace TRL's ``tools`` and ``environment_factory`` by ones whose failures cannot stop the run."""
    if kwargs.get("tools"):
        kwargs["tools"] = [guarded_tool(tool, timeout_s, reader) for tool in kwargs["tools"]]
    given = kwargs.get("environment_factory")
    if isinstance(given, Mapping):
        kwargs["environment_factory"] = {name: guarded(factory, timeout_s, reader) for name, factory in given.items()}
    elif given is not None:
        kwargs["environment_factory"] = guarded(given, timeout_s, reader)


def answer(value: object) -> str:
    """What a tool or a world returned, as text of bounded length."""
    text = value if isinstance(value, str) else str(value)
    text = text.encode("utf-8", "replace").decode()  # half of a character cannot be tokenised or written
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"


def within(timeout_s: float | None, function: Callable[..., T], *args: object, **kwargs: object) -> T:
    """The function's value. Raises what it raises, ``RuntimeError`` if it exits, ``TimeoutError`` if it takes too long.

    The working directory is as before then: the run's own paths may be relative.
    """
    here = os.getcwd()
    try:
        return time_limit.within(timeout_s, function, *args, **kwargs)
    except time_limit.TooLongError as error:
        raise TimeoutError(str(error)) from None
    except SystemExit as error:
        raise RuntimeError(f"exits with {error.code!r}") from error
    finally:
        os.chdir(here)


def _subclass(kind: type, factory: Callable[[], object], timeout_s: float | None, reader: Reader) -> type:
    members: dict[str, object] = {"reset": _reset(kind.reset, factory, timeout_s, reader)}  # type: ignore[attr-defined]
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if name == "get_reward":
            members[name] = _reward(method, timeout_s)
        elif name == "_reply" or (name != "reset" and not name.startswith("_")):
            members[name] = _method(method, timeout_s, reader, is_tool=name != "_reply")
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__, **members})


def _method(
    method: Callable[..., object], timeout_s: float | None, reader: Reader, *, is_tool: bool
) -> Callable[..., object]:
    call = guarded_tool(method, timeout_s, reader) if is_tool else functools.partial(within, timeout_s, method)
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def act_async(self: object, *args: object, **kwargs: object) -> object:
            try:
                found: object = await call(self, *args, **kwargs)  # type: ignore[misc]
                return found
            except Exception as error:
                if _is_lost(error):
                    lose(self, method.__name__, error)
                raise

        return act_async

    @functools.wraps(method)
    def act(self: object, *args: object, **kwargs: object) -> object:
        try:
            return call(self, *args, **kwargs)
        except Exception as error:
            if _is_lost(error):
                lose(self, method.__name__, error)
            raise

    return act


def _is_lost(error: Exception) -> bool:
    """Whether the state of an environment is not known after an error: it lost its connection, hung, or ended the process."""
    return isinstance(error, _LOST) or isinstance(error.__cause__, SystemExit)


def _reward(method: Callable[..., object], timeout_s: float | None) -> Callable[..., object]:
    """``get_reward`` with a limit; the rollout is not judged where it fails or returns what is no reward."""

    def checked(self: object, value: object) -> object:
        try:
            as_verdicts([value], n=1, name="get_reward")
        except ValueError as error:
            lose(self, "get_reward", error)
            return None
        return value

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def judge_async(self: object) -> object:
            try:
                return checked(self, await asyncio.wait_for(method(self), timeout_s))
            except Exception as error:
                lose(self, "get_reward", error)
                return None

        return judge_async

    @functools.wraps(method)
    def judge(self: object) -> object:
        try:
            return checked(self, within(timeout_s, method, self))
        except Exception as error:
            lose(self, "get_reward", error)
            return None

    return judge


def _reset(
    reset: Callable[..., object], factory: Callable[[], object], timeout_s: float | None, reader: Reader
) -> Callable[..., object]:
    @functools.wraps(reset)
    def start(self: object, **row: object) -> object:
        try:
            if failure(self):  # its state is not known: begin with a new one
                fresh = within(timeout_s, factory)
                vars(self).clear()
                vars(self).update(vars(fresh))
            shown = within(timeout_s, reset, self, **row)
            if shown is None:
                return None
            if isinstance(shown, str) or (
                isinstance(shown, list) and all(isinstance(part, Mapping) and "type" in part for part in shown)
            ):
                told = reader.answer(shown)
                if isinstance(told, str) and not reader.fits(row.get("prompt", ""), told):  # type: ignore[arg-type]
                    raise ValueError(f"shows {len(shown)} characters, more than the model can read before an answer")
                return told
            raise TypeError(f"returned {shown!r:.80}; it must be a text, None or a list of content parts")
        except Exception as error:
            lose(self, "reset", error)
            return None

    return start


def _describe(error: BaseException) -> str:
    try:
        said = " ".join(str(error).split())[:500]
    except Exception:  # an error that cannot say what it is
        said = ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
