"""Tasksets of verifiers 0.4, as its users write them: sums of one turn, or an account whose tools share the rollout's state."""

from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["TinyTaskset"]


class Account(vf.State):
    balance: int = 0


class AccountTools(vf.Toolset[vf.ToolsetConfig, Account]):
    TOOL_PREFIX = "bank"

    async def setup_task(self, task) -> None:
        self.owner = task.owner

    @vf.tool
    async def deposit(self, amount: int) -> str:
        """Pays money in.

        Args:
            amount: how much, above 0.
        """
        if amount <= 0:
            raise ValueError("not a deposit")
        self.state.balance += amount
        return f"{self.owner} has {self.state.balance}"


class TinyConfig(vf.TaskConfig):
    tools: bool = False


class TinyTasksetConfig(vf.TasksetConfig):
    n: int = 10
    tools: bool = False
    broken: bool = False


class TinyData(vf.TaskData):
    answer: str
    owner: str = "Ada"


class TinyTask(vf.Task[TinyData, Account, TinyConfig]):
    broken = False

    @classmethod
    def toolsets(cls, config):
        return [AccountTools(vf.ToolsetConfig())] if config.tools else []

    async def setup(self, trace, runtime) -> None:
        await runtime.write("note.txt", b"begun")

    @vf.reward
    async def right(self, task, trace) -> float:
        if self.broken:
            raise RuntimeError("the task broke")
        if self.config.tools:
            return float(trace.state.balance == int(task.answer))
        return float(trace.last_reply == task.answer)

    @vf.reward(weight=0.5)
    async def short(self, trace, runtime) -> float:
        assert await runtime.read("note.txt") == b"begun"
        return float(len(trace.last_reply) < 4)

    @vf.metric
    async def turns(self, trace) -> float:
        return float(trace.num_turns)


class TinyTaskset(vf.Taskset[TinyTask, TinyTasksetConfig]):
    def load(self) -> Iterator[TinyTask]:
        TinyTask.broken = self.config.broken
        for i in range(self.config.n):
            data = TinyData(prompt=f"What is {i}+{i}?", system_prompt="Answer with a number.", answer=str(2 * i))
            yield TinyTask(data, TinyConfig(tools=self.config.tools))
