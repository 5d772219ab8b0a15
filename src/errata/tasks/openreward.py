"""Environments of an OpenReward server through TRL's ``OpenRewardSpec``: ``openreward:http://127.0.0.1:8080``.

The rows are the server's tasks of the split, the prompts its prompts, and its tools the policy's. The score is the last reward
that a tool gave, as TRL reads it; the feedback of a rollout with less than 1 is what the last tool said. A rollout without any
reward has 0. Arguments follow a ``?``: ``rows``, the most tasks that are read, and ``env_name``, an environment of a server with
several. A name of OpenReward's catalogue works instead of an address, with its key and its network.
"""

from __future__ import annotations

import functools
import inspect
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from errata.records import Verdict
from errata.tasks.worlds import WorldVerifier, arguments_of, need, one_line

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["environment", "load", "verifier"]

_KNOWN = {"rows": int, "env_name": str}


def load(name: str, path: str | None = None, split: str = "train", *, strict: bool = True) -> Dataset:
    """The server's tasks. Own columns: ``split`` and ``task_index``.

    Raises ``ValueError`` for an unknown argument, a ``path``, or a server that does not answer or has no such split.
    """
    from datasets import Dataset

    if path is not None:
        raise ValueError(f"path: {name} is a server's; leave the path out")
    try:
        indices = _spec(name, split).train_dataset["task_index"]
        session = _spec(name, split).environment_factory()
        prompts = [session.reset(task_index=index) for index in indices]
    except ValueError:
        raise
    except Exception as error:  # each layer of the connection has its own class
        raise ValueError(f"task: {name} cannot give its tasks of the split {split!r}: {one_line(error)}") from error
    return Dataset.from_list(
        [
            {
                "problem_id": f"{name}/{split}/{index}",
                "prompt": [{"role": "user", "content": prompt}],
                "answer": "",
                "reference": None,
                "task": name,
                "split": split,
                "task_index": index,
            }
            for index, prompt in zip(indices, prompts, strict=True)
        ]
    )


def verifier(name: str) -> WorldVerifier:
    """The server's rewards."""
    return WorldVerifier()


def environment(name: str) -> type[OpenRewardWorld]:
    """The class whose instances a run's rollouts act in, each in a session of its own."""
    return _world(name)


class OpenRewardWorld:
    """One session of a server; a subclass has a method for each of its tools."""

    name = ""
    """The task's."""

    def reset(self, *, split: str, task_index: int, **columns: Any) -> None:
        """Begins a session of a task. Its prompt is in the row."""
        if not hasattr(self, "_sessions"):
            self._sessions: dict[str, Any] = {}
        if split not in self._sessions:
            self._sessions[split] = _spec(self.name, split).environment_factory()
        self._session = self._sessions[split]
        self._session.reset(task_index=task_index)

    def _verdict(self) -> Verdict:
        session = self._session
        if session.reward is None and session.last_output.startswith("Error") and not _answers(self.name):
            return Verdict(None, kind="error", info={"error": session.last_output[:300]})
        score = 0.0 if session.reward is None else float(session.reward)
        feedback = "" if score >= 1 else session.last_output or "No tool was called."
        info = {"calls": len(session.rewards), "finished": bool(session.finished)}
        return Verdict(score, feedback, kind="tool" if feedback else "", info=info)


@cache
def _settings(name: str) -> tuple[str, dict[str, Any]]:
    """The server's address and the arguments. Raises ``ValueError`` for an unknown one."""
    need("openreward", "trl[openreward]")
    address, args = arguments_of(name.partition(":")[2])
    for key, value in args.items():
        if key not in _KNOWN or not isinstance(value, _KNOWN[key]):
            known = ", ".join(f"{k} ({kind.__name__})" for k, kind in _KNOWN.items())
            raise ValueError(f"task: {name!r}: {key}={value!r}; the arguments are {known}")
    return address, args


@cache
def _spec(name: str, split: str) -> Any:
    from trl.experimental.openreward import OpenRewardSpec

    address, args = _settings(name)
    spec = OpenRewardSpec(
        address, split=split, num_tasks=args.get("rows"), env_name=args.get("env_name"), include_metadata=False
    )
    with _own_server(address):
        spec.train_dataset  # noqa: B018, its client is made here
    return spec


@contextmanager
def _own_server(address: str) -> Iterator[None]:
    """A context in which OpenReward's client takes an address as it is; else it puts ``sessions.`` and ``api.`` before it."""
    names = ("OPENREWARD_SESSION_URL", "OPENREWARD_API_URL") if "://" in address else ()
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: address for name in names if before[name] is None})
    try:
        yield
    finally:
        for name in names:
            if before[name] is None:
                del os.environ[name]


@cache
def _world(name: str) -> type[OpenRewardWorld]:
    """The class, with the tools that TRL finds on the server."""
    try:
        kind = type(_spec(name, "train").environment_factory())
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"task: {name} does not answer: {one_line(error)}") from error
    tools = {
        tool: _delegated(function)
        for tool, function in inspect.getmembers(kind, inspect.isfunction)
        if tool != "reset" and not tool.startswith("_")
    }
    return type("OpenRewardWorld", (OpenRewardWorld,), {"name": name, "__module__": __name__, **tools})


def _delegated(function: Callable[..., Any]) -> Callable[..., str]:
    """The method of a session as a method of its world, with the same signature."""

    @functools.wraps(function)
    def call(self: OpenRewardWorld, **arguments: Any) -> str:
        return str(getattr(self._session, function.__name__)(**arguments))

    return call


def _answers(name: str) -> bool:
    """Whether somebody listens at the server's address."""
    address = urlsplit(_settings(name)[0])
    if not address.hostname:
        return True
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), 5).close()
    except OSError:
        return False
    return True
