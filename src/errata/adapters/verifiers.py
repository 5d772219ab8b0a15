"""errata's tasks under verifiers: the taskset ``errata-taskset``, for evaluations and for trainers that take its environments.

``vf-eval errata-taskset --env.taskset.source rulebook/new-rule --env.agent.harness.id null --model MODEL``. The verifier's
score is the reward, and its verdict is kept in the trace's ``info``. ``vf-validate errata-taskset`` judges the references.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import verifiers.v1 as vf
from pydantic import Field

from errata.adapters.problems import Problems

__all__ = ["ErrataTask", "ErrataTaskset", "ErrataTasksetConfig"]


class ErrataTaskConfig(vf.TaskConfig):
    """Which task the verdicts are of; filled in by the taskset."""

    source: str = "rulebook/new-rule"
    split: str = "test"
    path: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)

    @cached_property
    def problems(self) -> Problems:
        """The task's rows and verifier, loaded once."""
        return Problems(self.source, split=self.split, path=self.path, args=self.args)


class ErrataTasksetConfig(vf.TasksetConfig):
    """``--env.taskset.*``: a name of ``errata tasks``, its split, its files, and its verifier's settings."""

    source: str = "rulebook/new-rule"
    split: str = "test"
    path: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)


class ErrataData(vf.TaskData):
    """A problem; its other columns stay with errata."""

    reference: str | None = None
    """A right solution, if there is one."""


class ErrataTask(vf.Task[ErrataData, vf.State, ErrataTaskConfig]):
    """One problem, whose reward is the score of errata's verifier."""

    @vf.reward
    async def verdict(self, task: ErrataData, trace: vf.Trace) -> float:
        """The score; the feedback goes into the trace. A rollout on which the verifier fails is an error of the task."""
        found = await self.config.problems.judged(str(task.id), trace.last_reply)
        trace.info["verdict"] = {"score": found.score, "kind": found.kind, "feedback": found.feedback}
        if found.score is None:
            raise vf.TaskError(f"the verifier failed: {found.info.get('error', '')}")
        return float(found.score)

    async def validate(self, runtime: vf.Runtime) -> bool | None:
        """Whether the reference is right; ``None`` where a row has none."""
        if self.data.reference is None:
            return None
        found = await self.config.problems.judged(str(self.data.id), self.data.reference)
        return found.score is not None and found.score >= 1


class ErrataTaskset(vf.Taskset[ErrataTask, ErrataTasksetConfig]):
    """The rows of one split of a task of errata."""

    def load(self) -> Iterator[ErrataTask]:
        """One task a row, all with one verifier."""
        wanted = {name: getattr(self.config, name) for name in ("source", "split", "path", "args")}
        config = ErrataTaskConfig(**self.config.task.model_dump(), **wanted)
        for problem_id, row in config.problems.rows.items():
            yield ErrataTask(
                ErrataData(id=problem_id, prompt=_prompt(row["prompt"]), reference=row.get("reference")), config
            )


def _prompt(prompt: Any) -> Any:
    """A single message of the user is its text, which every harness takes."""
    if isinstance(prompt, list) and [m["role"] for m in prompt] == ["user"]:
        return prompt[0]["content"]
    return prompt
