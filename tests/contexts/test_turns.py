"""Completions of several turns as text."""

import pytest

from errata.contexts import has_tools, hindsight, transcript

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


# -- hindsight --

TOOLS = [
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"key": "a"}}}]},
    {"role": "tool", "content": "no key 'a'"},
    {"role": "assistant", "content": "Which key?"},
    {"role": "user", "content": "b, of course"},
    {"role": "assistant", "content": "It is 7."},
]


def test_each_turn_is_followed_by_what_others_said_after_it():
    assert hindsight(TOOLS) == ("-> no key 'a'\nb, of course", "b, of course", "")


def test_feedback_on_a_turn_comes_first_and_the_last_feedback_last():
    said = hindsight(TOOLS, ["look at the list first", "", "one too many", "of no turn"], "wrong")
    assert said == (
        "look at the list first\n-> no key 'a'\nb, of course\none too many\nwrong",
        "b, of course\none too many\nwrong",
        "one too many\nwrong",
    )


def test_one_turn_has_the_feedback_on_the_whole():
    assert hindsight([{"role": "assistant", "content": "7"}], (), " 8, not 7 ") == ("8, not 7",)
    assert hindsight([]) == ()
