"""Worlds of other packages that a policy talks with in plain messages: what their adapters share.

A world is an environment of a rollout. ``reset(**row)`` begins it and may return a text that is added to the prompt.
``_reply(text)`` is given what the policy said and returns what the world says next, ``None`` at its end. ``_verdict()`` is read
when the rollout is over. The last two have an underscore because TRL offers public methods to the policy as tools; a world with
tools has one such method for each (``tool_method``), and no ``_reply``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import re
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Optional, Protocol

from errata.records import Verdict

__all__ = ["World", "WorldVerifier", "arguments_of", "need", "one_line", "run_in_loop", "tool_method"]

_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}


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


def need(package: str, requirement: str) -> None:
    """Raises ``ValueError`` with the mend where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"task: it needs the package {package}; pip install '{requirement}'")


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


def tool_method(
    name: str, description: str, parameters: Mapping[str, Any], call: Callable[[Any, str, dict[str, Any]], str]
) -> Callable[..., str]:
    """A method for the class of a world, which TRL offers to the policy as a tool.

    Args:
        name: the tool's.
        description: what it does; of a docstring with sections, what stands before them.
        parameters: the JSON schema of its arguments, an object with ``properties``.
        call: called with the world, the tool's name and the arguments; its value is the tool's answer.
    Raises:
        ValueError: a tool or an argument whose name is none in Python, or begins with an underscore.
    """
    properties, required = parameters.get("properties") or {}, parameters.get("required") or ()
    for word in (name, *properties):
        if not word.isidentifier() or word.startswith("_"):
            raise ValueError(f"task: the tool {name!r} cannot be offered, because {word!r} is no name of an argument")

    def method(self: Any, **arguments: Any) -> str:
        return call(self, name, arguments)

    hints = {key: _type(schema) for key, schema in properties.items()}
    told = {key: " ".join(str(schema.get("description") or key).split()) for key, schema in properties.items()}
    lines = [f"    {key}: {text}" for key, text in told.items()]
    method.__name__ = method.__qualname__ = name
    method.__doc__ = "\n".join([_before_sections(description) or name, *(["", "Args:", *lines] if lines else [])])
    method.__annotations__ = {**hints, "return": str}
    # For transformers, which makes the schema of what is called from its signature.
    method.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(
                inspect.Parameter(
                    key,
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=hints[key],
                    default=inspect.Parameter.empty if key in required else schema.get("default"),
                )
                for key, schema in properties.items()
            ),
        ],
        return_annotation=str,
    )
    return method


def _before_sections(description: str) -> str:
    return re.split(r"(?:^|\n)\s*(?:Args|Returns|Raises):", inspect.cleandoc(description or ""))[0].strip()


def _type(schema: Mapping[str, Any]) -> Any:
    """The Python type of a JSON schema, as far as transformers can make a schema of it again."""
    choices = schema.get("enum")
    if choices and all(isinstance(choice, str | int | float | bool) for choice in choices):
        return Literal[tuple(choices)]
    options = [o for o in schema.get("anyOf") or schema.get("oneOf") or [] if o.get("type") != "null"]
    if options:
        return Optional[_type(options[0])]  # noqa: UP045, the type is made here
    if schema.get("type") == "array" and "type" in (schema.get("items") or {}):
        return list[_type(schema["items"])]  # type: ignore[misc]
    return _TYPES.get(str(schema.get("type")), str)


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
