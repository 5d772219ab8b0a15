"""A server of OpenReward on a port of this machine: ``python number_ors.py PORT``. Two tools; the second one ends the episode."""

import sys

from openreward.environments import Environment, Server, TextBlock, ToolOutput, tool
from pydantic import BaseModel


class Guess(BaseModel):
    number: int
    """The number that is compared."""


class Number(Environment):
    @classmethod
    def list_splits(cls):
        return ["train", "test"]

    @classmethod
    def list_tasks(cls, split):
        return [{"number": n} for n in (range(5) if split == "train" else range(5, 7))]

    def get_prompt(self):
        return [TextBlock(type="text", text=f"Find the number below {10 if self.task_spec['number'] < 5 else 20}.")]

    @tool
    async def compare(self, params: Guess) -> ToolOutput:
        """Compares a number with the one to be found."""
        if params.number < 0:
            raise ValueError("below 0")
        said = "too low" if params.number < self.task_spec["number"] else "not too low"
        return ToolOutput(blocks=[TextBlock(type="text", text=said)], finished=False)

    @tool
    async def answer(self, params: Guess) -> ToolOutput:
        """Gives the answer."""
        right = params.number == self.task_spec["number"]
        said = "right" if right else f"{params.number} is not it"
        return ToolOutput(blocks=[TextBlock(type="text", text=said)], reward=float(right), finished=True)


if __name__ == "__main__":
    Server([Number]).run(host="127.0.0.1", port=int(sys.argv[1]))
