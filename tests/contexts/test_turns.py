"""Completions of several turns as text."""

import pytest

from errata.contexts import has_tools, transcript

CALL = {
    "role": "assistant",
    "content": "I count.",
    "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": "é"}}},
        {"name": "stop", "arguments": {}},
    ],
}
TURNS = [
    CALL,
    {"role": "tool", "name": "add", "content": "7"},
    {"role": "tool", "name": "stop", "content": [{"type": "image", "image": 0}, {"type": "text", "text": "done"}]},
    {"role": "assistant", "content": "It is 7."},
]


def test_everything_in_the_order_it_happened():
    assert transcript(TURNS) == 'I count.\nadd({"a": 3, "b": "é"})\nstop({})\n-> 7\n-> done\nIt is 7.'


@pytest.mark.parametrize(
    "completion", ["It is 7.", [{"role": "assistant", "content": "It is 7."}], [{"content": "It is 7."}]]
)
def test_one_answer_is_itself(completion):
    assert transcript(completion) == "It is 7."
    assert not has_tools(completion)


def test_a_call_alone_counts_as_tools():
    assert has_tools([CALL])
    assert has_tools(TURNS)
    assert transcript([{"role": "assistant", "content": None}]) == ""
