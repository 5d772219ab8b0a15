"""Tasksets of ``verifiers`` 0.4, unchanged: the tasks of ``verifiers:NAME`` where that version is installed.

``NAME`` is what ``verifiers.v1.load_taskset`` loads, arguments are those of its config. A task's rewards and metrics judge. The
verdict's score is the reward divided by the sum of the rewards' weights; the rewards that are not full are the feedback. The
tools of a task's toolsets are the policy's tools. They run in this process, where verifiers would start a server for each
rollout; what a tool stores in the rollout's state is there for the rewards. A runtime, which a task may ask for, is a folder of
this machine.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from errata.records import Verdict
from errata.tasks.worlds import WorldVerifier, arguments_of, one_line, run_in_loop, tool_method

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["environment", "load", "verifier"]

_MOST = 10_000
"""Rows of a taskset that has no end."""
_STATE: ContextVar[Any] = ContextVar("state")
"""The state of the rollout that calls a tool."""
_TEST_EVERY = 5
"""Of a taskset without splits every fifth row is the test split's."""


def load(name: str, split: str) -> Dataset:
    """The taskset's rows. One whose config has a ``split`` is given the split's name, unless the task's arguments name one.

    Own columns: ``split`` and ``row``, the row's number in the taskset.

    Raises ``ValueError`` for an unknown split, a taskset that cannot be loaded, or a task that cannot run here.
    """
    from datasets import Dataset

    tasks = list(_tasks(name, split).values())
    if _has_no_split(name) and len(tasks) >= _TEST_EVERY:
        tasks = [t for t in tasks if (t.data.idx % _TEST_EVERY == _TEST_EVERY - 1) == (split == "test")]
    rows = []
    for task in tasks:
        data = task.data
        rows.append(
            {
                "problem_id": f"{name}/{split}/{data.idx if data.id is None else data.id}",
                "prompt": _prompt(name, data),
                "answer": str(getattr(data, "answer", None) or ""),
                "reference": None,
                "task": name,
                "split": split,
                "row": data.idx,
            }
        )
    return Dataset.from_list(rows)


def verifier(name: str) -> WorldVerifier:
    """The tasks' own rewards."""
    return TaskVerifier(name)


def environment(name: str) -> type[TaskWorld] | None:
    """The class of the rollouts of a taskset with tools; ``None`` without."""
    return _world(name) if _toolsets(name) else None


class TaskVerifier(WorldVerifier):
    """The rewards of the rows' tasks. Reads the columns ``split`` and ``row``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__name__ = name.partition(":")[2].partition("?")[0]

    def __call__(self, completions: Sequence[Any], environments: Sequence[Any] = (), **columns: Any) -> list[Verdict]:
        worlds = list(environments)
        if not _toolsets(self.name):
            worlds = [_world(self.name)() for _ in completions]
            for world, split, row in zip(worlds, columns["split"], columns["row"], strict=True):
                world.reset(split=split, row=row)
        return [world._verdict(said) for world, said in zip(worlds, completions, strict=True)]


class TaskWorld:
    """One rollout of a task; a subclass has a method for each tool."""

    name = ""
    """Of errata's task."""

    def reset(self, *, split: str, row: int, **columns: Any) -> None:
        """Begins a rollout of a row: the task's ``setup``, and its toolsets'."""
        self._close()
        run_in_loop(self._begin(_tasks(self.name, split)[row])).result()

    async def _begin(self, task: Any) -> None:
        import verifiers.v1 as vf
        from verifiers.v1.runtimes import make_runtime
        from verifiers.v1.state import state_cls

        self.task = task
        self.trace = vf.Trace(
            task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
            state=state_cls(type(task))(),
            agent=vf.AgentInfo(config=vf.AgentConfig()),
        )
        self.runtime = make_runtime(vf.SubprocessConfig(), name=self.trace.id)
        await self.runtime.start()
        await task.setup(**self._wanted(task.setup))
        own = await _serve(type(task).toolsets(task.config), task)
        self.servers = {**_shared(self.name), **own}

    def _wanted(self, function: Any) -> dict[str, Any]:
        """The arguments of a hook, by the names it has for them."""
        known = {"task": self.task.data, "trace": self.trace, "runtime": self.runtime}
        return {name: known[name] for name in inspect.signature(function).parameters if name in known}

    def _call(self, tool: str, arguments: dict[str, Any]) -> str:
        return str(run_in_loop(self._called(tool, arguments)).result())

    async def _called(self, tool: str, arguments: dict[str, Any]) -> str:
        from mcp.server.mcpserver.exceptions import ToolError

        server, own = self.servers[tool]
        _STATE.set(self.trace.state)  # of this coroutine alone
        try:
            result = await server.call_tool(own, arguments)
        except ToolError as error:
            return str(error)
        return "\n".join(str(getattr(block, "text", block)) for block in result.content)

    def _verdict(self, completion: Any) -> Verdict:
        """The task's rewards. A rollout on which one of them raises is not judged."""
        try:
            return run_in_loop(self._judge(completion)).result()  # type: ignore[no-any-return]
        except Exception as error:  # the task's own code
            return Verdict(None, kind="error", info={"error": one_line(error)})
        finally:
            self._close()

    async def _judge(self, completion: Any) -> Verdict:
        self.trace.nodes = _nodes(_prompt(self.name, self.task.data), completion)
        self.trace.stop("agent_completed")
        await self.task.finalize(**self._wanted(self.task.finalize))
        await self.task.score(self.trace, self.runtime)
        rewards = {name: reward for name, reward in self.trace.rewards.items() if reward is not None}
        if not rewards:
            raise ValueError("the task has no reward")
        total = sum(reward.weight for reward in rewards.values() if reward.weight > 0) or 1.0
        lacking = [f"{name}: {r.score:g}" for name, r in rewards.items() if r.weight and r.score < 1]
        info = {"reward": float(self.trace.reward), **{name: reward.score for name, reward in rewards.items()}}
        info |= {name: value for name, value in self.trace.metrics.items() if value is not None}
        return Verdict(self.trace.reward / total, "\n".join(lacking), kind="rewards" if lacking else "", info=info)

    def _close(self) -> None:
        runtime, self.runtime = getattr(self, "runtime", None), None
        if runtime is not None:
            run_in_loop(runtime.stop()).result()


def typed_messages(messages: Sequence[Mapping[str, Any]], types: Any) -> list[Any]:
    """A rollout's messages as those of verifiers, whose ``types`` are those of its version."""
    found: list[Any] = []
    waiting: list[str] = []
    for number, message in enumerate(messages):
        content = message.get("content") or ""
        if message["role"] == "assistant":
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            waiting = [f"call-{number}-{n}" for n in range(len(calls))]
            typed = [
                types.ToolCall(id=key, name=call["name"], arguments=json.dumps(call["arguments"], default=str))
                for key, call in zip(waiting, calls, strict=True)
            ]
            found.append(types.AssistantMessage(content=content, tool_calls=typed or None))
        elif message["role"] == "tool":
            found.append(types.ToolMessage(content=content, tool_call_id=waiting.pop(0) if waiting else ""))
        elif message["role"] == "system":
            found.append(types.SystemMessage(content=content))
        else:
            found.append(types.UserMessage(content=content))
    return found


def _nodes(prompt: Sequence[Mapping[str, Any]], completion: Any) -> list[Any]:
    """The conversation as a trace has it: each message after the one before."""
    from verifiers.v1 import MessageNode, types

    said = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    messages = typed_messages([*prompt, *said], types)
    return [
        MessageNode(
            parent=n - 1 if n else None, message=message, sampled=n >= len(prompt) and message.role == "assistant"
        )
        for n, message in enumerate(messages)
    ]


def _prompt(name: str, data: Any) -> list[dict[str, Any]]:
    if data.prompt is None:
        raise ValueError(f"task: {name} has a task without a prompt, which a user would open; that is not supported")
    system = [] if data.system_prompt is None else [{"role": "system", "content": data.system_prompt}]
    if isinstance(data.prompt, str):
        return [*system, {"role": "user", "content": data.prompt}]
    return [*system, *({"role": message.role, "content": message.content or ""} for message in data.prompt)]


# -- what is loaded once --


@cache
def _taskset(name: str, split: str) -> Any:
    import verifiers.v1 as vf

    rest, args = arguments_of(name.partition(":")[2])
    try:
        config = vf.taskset_config_type(rest)
        if "split" in config.model_fields:
            args = {"split": split, **args}
        return vf.load_taskset(config(id=rest, **args))
    except Exception as error:  # the taskset's own code
        raise ValueError(f"task: verifiers cannot load the taskset {rest!r}: {one_line(error)}") from error


def _has_no_split(name: str) -> bool:
    return "split" not in type(_taskset(name, "train").config).model_fields


@cache
def _tasks(name: str, split: str) -> dict[int, Any]:
    if split not in ("train", "test"):
        raise ValueError(f"split: {name} has train and test, not {split!r}")
    try:
        found = {task.data.idx: task for task in islice(_taskset(name, split), _MOST)}
    except Exception as error:  # the taskset's own code
        raise ValueError(f"task: {name} cannot make its tasks: {one_line(error)}") from error
    if not found:
        raise ValueError(f"task: {name} has no tasks")
    for task in found.values():
        if task.NEEDS_CONTAINER or task.data.image is not None:
            raise ValueError(f"task: {name} has tasks that need a container, which are not supported")
    return found


@cache
def _shared(name: str) -> dict[str, tuple[Any, str]]:
    """The tools that all rollouts of a taskset share."""
    taskset = _taskset(name, "train")
    found: dict[str, tuple[Any, str]] = run_in_loop(_serve(type(taskset).toolsets(taskset.config), None)).result()
    return found


def _toolsets(name: str) -> list[Any]:
    taskset = _taskset(name, "train")
    task = next(iter(_tasks(name, "train").values()))
    return [*type(taskset).toolsets(taskset.config), *type(task).toolsets(task.config)]


@cache
def _world(name: str) -> type[TaskWorld]:
    """The class of the taskset's rollouts, with the tools of its first task."""
    methods: dict[str, Any] = {}
    task = next(iter(_tasks(name, "train").values()))
    served = {**_shared(name), **run_in_loop(_serve(type(task).toolsets(task.config), task)).result()}
    for own, (server, tool) in served.items():
        (found,) = (t for t in run_in_loop(server.list_tools()).result() if t.name == tool)
        schema = _with_descriptions(found.input_schema, found.description or "")
        methods[own] = tool_method(own, found.description or "", schema, TaskWorld._call)
    return type("TaskWorld", (TaskWorld,), {"name": name, "__module__": __name__, **methods})


def _with_descriptions(schema: Mapping[str, Any], docstring: str) -> dict[str, Any]:
    """A tool's schema with the descriptions that the docstring's ``Args`` give its arguments."""
    _, _, section = docstring.partition("Args:")
    told = dict(re.findall(r"^\s*(\w+)(?: ?\([^)]*\))?: *(.+)$", section, re.MULTILINE))
    properties = {
        key: {"description": told.get(key, key), **value} for key, value in (schema.get("properties") or {}).items()
    }
    return {**schema, "properties": properties}


async def _serve(toolsets: Sequence[Any], task: Any) -> dict[str, tuple[Any, str]]:
    """By the policy's name of each tool: its toolset's server, which is called in this process, and the tool's name there."""
    from mcp.server.mcpserver import MCPServer

    found: dict[str, tuple[Any, str]] = {}
    for toolset in toolsets:
        kind = type(toolset)
        if toolset.config.url:
            raise ValueError(
                f"task: the tools of {kind.__name__} are at {toolset.config.url}; only own ones are supported"
            )
        # Its state is that of the rollout that calls, which verifiers would send to the server and back.
        members = {"state": property(lambda self: _STATE.get()), "__module__": kind.__module__}
        toolset.__class__ = type(kind.__name__, (kind,), members)
        await toolset.setup()
        if task is not None:
            await toolset.setup_task(task.data)
        server = MCPServer(toolset.server_name or kind.__name__)
        toolset.register(server)
        for tool in await server.list_tools():
            found[f"{toolset.server_name}_{tool.name}" if toolset.server_name else tool.name] = server, tool.name
    return found
