"""Environments of the package ``verifiers``, unchanged: ``verifiers:NAME`` or ``verifiers:NAME?argument=value``.

``NAME`` is what ``verifiers.load_environment`` loads. The rows are those of its data set, the prompts too. The environment runs
its own loop: where it would ask a model, it is given what the policy wrote. So its turns, its ends and its errors are its own,
and its rubric judges. The verdict's score is the reward divided by the sum of the rubric's weights, 1.0 where every part is full;
the parts that are not full are the feedback. This is for versions 0.2 and 0.3; the tasksets of 0.4 are in
``tasks/verifiers_tasksets.py``.

An environment with tools offers them to the policy as TRL's tools. TRL makes one call at a time, and each is a message of its
own for the environment; its rubric gets the rollout as it was.
"""

from __future__ import annotations

import asyncio
import json
import queue
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from errata.records import Verdict
from errata.tasks import verifiers_tasksets
from errata.tasks.verifiers_tasksets import typed_messages
from errata.tasks.worlds import WorldVerifier, arguments_of, need, one_line, run_in_loop, tool_method

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["environment", "load", "verifier"]

_PATIENCE_S = 600.0
"""A rollout that waits for the policy's message longer than this was given up by its trainer."""


def load(name: str, path: str | None = None, split: str = "train", *, strict: bool = True) -> Dataset:
    """The environment's training rows, or for ``test`` its evaluation rows (its training rows where it has no others).

    Own columns: ``row``, the row's number in the environment's data, and ``info``, JSON text.

    Raises ``ValueError`` for an unknown split, a ``path``, or an environment that cannot be loaded.
    """
    from datasets import Dataset

    if path is not None:
        raise ValueError(f"path: the rows of {name} are its environment's; leave the path out")
    if _has_tasksets():
        return verifiers_tasksets.load(name, split)
    rows = _rows(name, split)
    return Dataset.from_list(
        [
            {
                "problem_id": f"{name}/{split}/{row.get('example_id', number)}",
                "prompt": [_plain(message) for message in row["prompt"]],
                "answer": str(row.get("answer") or ""),
                "reference": None,
                "task": name,
                "info": json.dumps(row.get("info") or {}, ensure_ascii=False, default=str),
                "split": split,
                "row": number,
            }
            for number, row in enumerate(rows)
        ]
    )


def verifier(name: str) -> WorldVerifier:
    """The environment's own rubric."""
    if _has_tasksets():
        return verifiers_tasksets.verifier(name)
    return RubricVerifier(name) if _one_turn(name) else ConversationVerifier()


def environment(name: str) -> type | None:
    """The class of rollouts of several turns; ``None`` for an environment of one turn."""
    if _has_tasksets():
        return verifiers_tasksets.environment(name)
    return None if _one_turn(name) else _world(name)


class RubricVerifier(WorldVerifier):
    """The rubric of an environment of one turn. Reads the columns ``split`` and ``row``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__name__ = name.partition(":")[2].partition("?")[0]

    def __call__(self, completions: Sequence[Any], environments: Sequence[Any] = (), **columns: Any) -> list[Verdict]:
        worlds = [_plain_world(self.name)() for _ in completions]
        for world, split, row, said in zip(worlds, columns["split"], columns["row"], completions, strict=True):
            world.reset(split=split, row=row)
            world._reply(said if isinstance(said, str) else str(said[-1].get("content") or ""))
        return [world._verdict() for world in worlds]


class ConversationVerifier(WorldVerifier):
    """What each rollout's environment says of it, which is shown the whole rollout first."""

    def __call__(self, completions: Sequence[Any], environments: Sequence[Any], **columns: Any) -> list[Verdict]:
        return [
            environment._verdict(completion) for environment, completion in zip(environments, completions, strict=True)
        ]


class VerifiersRollout:
    """One rollout of an environment of ``verifiers``, in a loop of its own that waits for the policy's messages."""

    name = ""
    """The task's."""

    def reset(self, *, split: str, row: int, **columns: Any) -> str | None:
        """Begins a rollout of a row; what the environment adds to the row's prompt."""
        self._finish()
        self.requests: queue.Queue[list[dict[str, Any]] | None] = queue.Queue()
        self.answers: asyncio.Queue[str | _Call | None] = asyncio.Queue()
        self.state: Any = None
        data = dict(_rows(self.name, split)[row])
        self.rollout = run_in_loop(self._rollout(data))
        self.seen = [_plain(message) for message in data["prompt"]]
        first = self._next()
        return "".join(f"\n{text}" for text in first or ()) or None

    def _tell(self, said: str | _Call) -> list[str] | None:
        """What the environment says to a message or a call of the policy; ``None`` where the rollout is over."""
        if self.rollout.done():
            return None
        self.seen.append({"role": "assistant", "content": "" if isinstance(said, _Call) else said})
        self._say(said)
        return self._next()

    def _verdict(self, completion: Any = None) -> Verdict:
        """The rubric's. A rollout whose environment or rubric raised is not judged."""
        try:
            self._end(completion if isinstance(completion, list) else [])
            return self._judged(self.rollout.result())
        except Exception as error:  # the environment's own code
            return Verdict(None, kind="error", info={"error": one_line(error)})

    def _end(self, messages: list[dict[str, Any]]) -> None:
        self._finish()

    def _judged(self, state: Any) -> Verdict:
        if state.get("error") is not None:
            return Verdict(None, kind="error", info={"error": one_line(state["error"])})
        run_in_loop(_rubric(self.name).score_rollout(state)).result()
        weights = _weights(self.name)
        metrics = {part: float(value) for part, value in (state.get("metrics") or {}).items()}
        total = sum(weight for weight in weights.values() if weight > 0) or 1.0
        lacking = [
            f"{part}: {metrics[part]:g}" for part, w in weights.items() if w and part in metrics and metrics[part] < 1
        ]
        info = {"reward": float(state["reward"]), **metrics, "ended_by": str(state.get("stop_condition") or "")}
        return Verdict(float(state["reward"]) / total, "\n".join(lacking), kind="rubric" if lacking else "", info=info)

    def _next(self) -> list[str] | None:
        """What was said since the policy's last message; ``None`` where the rollout is over."""
        messages = self.requests.get()
        if messages is None:
            self.rollout.result()  # raises what the environment raised
            return None
        new = messages[len(self.seen) :]
        self.seen = messages
        return [str(message.get("content") or "") for message in new]

    def _say(self, said: str | _Call | None) -> None:
        async def put() -> None:
            self.answers.put_nowait(said)

        run_in_loop(put()).result()

    def _finish(self) -> None:
        """Ends a rollout that still waits for the policy."""
        if getattr(self, "rollout", None) is not None and not self.rollout.done():
            self._say(None)
            self.rollout.result()

    async def _rollout(self, data: Mapping[str, Any]) -> Any:
        try:
            return await _environment(self.name).rollout(dict(data), _client(self), "policy", {})
        finally:
            self.requests.put(None)


class VerifiersWorld(VerifiersRollout):
    """A rollout of an environment that talks in plain messages."""

    def _reply(self, text: str) -> str | None:
        said = self._tell(text)
        return None if said is None else "\n".join(said)


class VerifiersToolWorld(VerifiersRollout):
    """A rollout of an environment with tools; a subclass has a method for each."""

    def _call(self, tool: str, arguments: dict[str, Any]) -> str:
        said = self._tell(_Call(tool, json.dumps(arguments, ensure_ascii=False, default=str)))
        if said is None:
            state = self.rollout.result()
            said = [_plain(m)["content"] for m in state.get("final_env_response") or ()] or [
                f"The rollout is over ({state.get('stop_condition')})."
            ]
        return "\n".join(said)

    def _end(self, messages: list[dict[str, Any]]) -> None:
        if messages and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
            self._tell(str(messages[-1].get("content") or ""))
        self._finish()
        if messages:  # calls of one message are one message, with the text beside them
            import verifiers.types

            self.rollout.result()["completion"] = typed_messages(messages, verifiers.types)


class _Call(NamedTuple):
    """A call of a tool."""

    tool: str
    arguments: str
    """JSON."""


@cache
def _environment(name: str) -> Any:
    need("verifiers", "errata[verifiers-envs]")
    import verifiers

    rest, args = arguments_of(name.partition(":")[2])
    try:
        return verifiers.load_environment(rest, **args)
    except Exception as error:  # the environment's own code
        raise ValueError(f"task: verifiers cannot load the environment {rest!r}: {one_line(error)}") from error


@cache
def _rows(name: str, split: str) -> list[dict[str, Any]]:
    if split not in ("train", "test"):
        raise ValueError(f"split: {name} has train and test, not {split!r}")
    found = _environment(name)
    return [dict(row) for row in (found.get_dataset() if split == "train" else found.get_eval_dataset())]


def _has_tasksets() -> bool:
    """Whether the package is of version 0.4, which has tasksets instead of environments."""
    need("verifiers", "errata[verifiers-envs]")  # or the extra `verifiers`, for 0.4
    import verifiers

    return not hasattr(verifiers, "MultiTurnEnv")


def _one_turn(name: str) -> bool:
    import verifiers

    return isinstance(_environment(name), verifiers.SingleTurnEnv)


@cache
def _world(name: str) -> type[VerifiersRollout]:
    """The class of an environment's rollouts; where several environments are grouped, only their messages are supported."""
    found = _environment(name)
    for part in getattr(found, "envs", ()):
        if getattr(part, "tool_defs", None):
            raise ValueError(
                f"task: {name} is a group of environments, some with tools; name each of them in tasks instead"
            )
    tools = getattr(found, "tool_defs", None) or ()
    if not tools:
        return _plain_world(name)
    methods = {t.name: tool_method(t.name, t.description, t.parameters, VerifiersToolWorld._call) for t in tools}
    return type("VerifiersToolWorld", (VerifiersToolWorld,), {"name": name, "__module__": __name__, **methods})


@cache
def _plain_world(name: str) -> type[VerifiersWorld]:
    return type("VerifiersWorld", (VerifiersWorld,), {"name": name, "__module__": __name__})


def _rubric(name: str) -> Any:
    return _environment(name).rubric


@cache
def _weights(name: str) -> dict[str, float]:
    """The weight of each part of the rubric, those of a group's rubrics too."""
    found: dict[str, float] = {}
    waiting = [_rubric(name)]
    while waiting:
        rubric = waiting.pop(0)
        waiting += list(getattr(rubric, "rubrics", ()))
        for function, weight in zip(rubric.funcs, rubric.weights, strict=True):
            found[getattr(function, "__name__", repr(function))] = float(weight)
    return found


def _plain(message: Any) -> dict[str, Any]:
    """A message of verifiers as a mapping with role and content."""
    given = dict(message) if isinstance(message, Mapping) else message.model_dump()
    return {"role": given["role"], "content": given.get("content") or ""}


def _client(world: VerifiersRollout) -> Any:
    """A client of verifiers that asks the policy: it hands the conversation over and waits for the next message."""
    from verifiers.clients import Client
    from verifiers.types import Response, ResponseMessage, ToolCall

    class Policy(Client):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(None)

        async def get_response(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
            import verifiers

            world.requests.put([_plain(message) for message in prompt])
            text = await asyncio.wait_for(world.answers.get(), _PATIENCE_S)
            if text is None:  # no room for another turn
                raise verifiers.OverlongPromptError("the rollout has no room for another turn")
            calls, finish = None, "stop"
            if isinstance(text, _Call):
                calls = [ToolCall(id=f"call-{len(prompt)}", name=text.tool, arguments=text.arguments)]
                text, finish = "", "tool_calls"
            message = ResponseMessage(
                role="assistant", content=text, finish_reason=finish, is_truncated=False, tool_calls=calls
            )
            return Response(id="errata", created=int(time.time()), model="policy", message=message)

        def setup_client(self, config: Any) -> Any:
            return None

        async def to_native_tool(self, tool: Any) -> Any:
            return tool

        async def to_native_prompt(self, messages: Any) -> Any:
            return messages, {}

        async def get_native_response(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

        async def raise_from_native_response(self, response: Any) -> None: ...

        async def from_native_response(self, response: Any) -> Any:
            return response

        async def close(self) -> None: ...

    return Policy()
