"""Environments of OpenEnv on a server: ``openenv:http://127.0.0.1:8000``, with arguments after a ``?``.

A row is a seed. Each of the policy's messages is an action, ``{"message": text}``, and what the server observes comes back as the
user's next message. The score is the sum of the rewards; the last observation is the feedback of a rollout with less than 1.

| argument | default | meaning |
|---|---|---|
| `action` | `message` | the field of an action that gets the policy's text |
| `observation` | all, as JSON | the field of an observation that is shown |
| `rows` | 256 and 64 | rows of training and test |
| `prompt` | `Each of your messages is an action in this world.` | what comes before the first observation |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from errata.records import Verdict
from errata.tasks.worlds import WorldVerifier, arguments_of, need, one_line

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["environment", "load", "verifier"]

_ROWS = {"train": 256, "test": 64}
_KNOWN = {"action": str, "observation": str, "rows": int, "prompt": str}


def load(name: str, path: str | None = None, split: str = "train", *, strict: bool = True) -> Dataset:
    """Rows with the column ``world_seed``; the test split has other seeds.

    Raises ``ValueError`` for an unknown split or argument, a ``path``, or a server that does not answer.
    """
    from datasets import Dataset

    if path is not None:
        raise ValueError(f"path: {name} is a server's; leave the path out")
    if split not in _ROWS:
        raise ValueError(f"split: {name} has train and test, not {split!r}")
    address, args = _settings(name)
    try:
        _world(name)().reset(world_seed=0)
    except Exception as error:  # each layer of the connection has its own class
        raise ValueError(
            f"task: the server {address} cannot begin an episode: {one_line(error)}; is it running?"
        ) from error
    first = 0 if split == "train" else 1_000_000
    return Dataset.from_list(
        [
            {
                "problem_id": f"{name}/{seed}",
                "prompt": [{"role": "user", "content": args["prompt"]}],
                "answer": "",
                "reference": None,
                "task": name,
                "world_seed": seed,
            }
            for seed in range(first, first + args.get("rows", _ROWS[split]))
        ]
    )


def verifier(name: str) -> WorldVerifier:
    """The server's rewards."""
    return WorldVerifier()


def environment(name: str) -> type[OpenEnvWorld]:
    """The class whose instances a run's rollouts act in, each with a connection of its own."""
    return _world(name)


class OpenEnvWorld:
    """One episode on a server."""

    name = ""
    """The task's."""

    def reset(self, *, world_seed: int, **columns: Any) -> str:
        """Begins the episode of a seed, and returns the first observation."""
        from openenv.core.generic_client import GenericEnvClient

        address, self._args = _settings(self.name)
        if not hasattr(self, "_client"):
            self._client = GenericEnvClient(base_url=address).sync().connect()
        self.total, self.steps, self.last = 0.0, 0, self._client.reset(seed=world_seed)
        return f"\n\n{self._shown()}"

    def _reply(self, text: str) -> str | None:
        if self.last.done:
            return None
        self.last = self._client.step({self._args["action"]: text})
        self.total, self.steps = self.total + float(self.last.reward or 0.0), self.steps + 1
        return None if self.last.done else self._shown()

    def _verdict(self) -> Verdict:
        feedback = "" if self.total >= 1 else self._shown()
        info = {"steps": self.steps, "done": bool(self.last.done)}
        return Verdict(self.total, feedback, kind="observation" if feedback else "", info=info)

    def _shown(self) -> str:
        seen = self.last.observation
        if "observation" in self._args:
            seen = seen.get(self._args["observation"]) if isinstance(seen, Mapping) else None
        return seen if isinstance(seen, str) else json.dumps(seen, ensure_ascii=False, default=str)


@cache
def _settings(name: str) -> tuple[str, dict[str, Any]]:
    """The server's address and the arguments. Raises ``ValueError`` for an unknown one."""
    need("openenv", "errata[openenv]")
    address, args = arguments_of(name.partition(":")[2])
    for key, value in args.items():
        if key not in _KNOWN or not isinstance(value, _KNOWN[key]):
            known = ", ".join(f"{k} ({kind.__name__})" for k, kind in _KNOWN.items())
            raise ValueError(f"task: {name!r}: {key}={value!r}; the arguments are {known}")
    return address, {"action": "message", "prompt": "Each of your messages is an action in this world.", **args}


@cache
def _world(name: str) -> type[OpenEnvWorld]:
    _settings(name)
    return type("OpenEnvWorld", (OpenEnvWorld,), {"name": name, "__module__": __name__})
