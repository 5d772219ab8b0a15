"""Environments of verifiers 0.2 and 0.3 with tools, as its users write them: one of functions, one whose tools share a state."""

import verifiers as vf
from datasets import Dataset


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the first number.
        b: the second number.
    """
    return a + b


def divide(a: int, b: int = 1) -> float:
    """Divides a number by another one.

    Args:
        a: what is divided.
        b: what it is divided by.
    """
    return a / b


async def press(times: int, counter: list) -> str:
    """Presses the button.

    Args:
        times: how often.
        counter: the presses so far.
    """
    if times > 9:
        raise OSError("the button broke")
    counter.append(times)
    return f"{sum(counter)} so far"


class Button(vf.StatefulToolEnv):
    """A button that must be pressed a number of times; it breaks where it is pressed more than nine times at once."""

    def __init__(self, **kwargs):
        super().__init__(stop_errors=[OSError], **kwargs)
        self.add_tool(press, args_to_skip=["counter"])

    async def setup_state(self, state):
        state["counter"] = []

    def update_tool_args(self, tool_name, tool_args, messages, state, **kwargs):
        return {**tool_args, "counter": state["counter"]}


def load_environment(stateful: bool = False, max_turns: int = 4):
    async def right(completion, answer):
        return float(completion[-1].content == answer)

    async def calls(completion):
        return float(sum(len(m.tool_calls or ()) for m in completion if m.role == "assistant"))

    async def pressed(state, answer):
        return float(sum(state["counter"]) == int(answer))

    rows = Dataset.from_list([{"question": f"How much is {i}+2?", "answer": str(i + 2)} for i in range(3)])
    if stateful:
        return Button(dataset=rows, rubric=vf.Rubric(funcs=[pressed]), max_turns=max_turns)
    rubric = vf.Rubric(funcs=[right, calls], weights=[1.0, 0.0])
    return vf.ToolEnv(tools=[add, divide], dataset=rows, rubric=rubric, max_turns=max_turns)
