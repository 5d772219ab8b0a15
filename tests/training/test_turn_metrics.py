"""Mentions of hidden feedback and quotes over several turns: what a policy was told before a turn, it had seen at that turn."""

import pytest

from errata import methods
from errata.records import Group, Rollout, Verdict
from errata.training.metrics import batch_metrics

REFERENCE = " ".join(f"word{n}" for n in range(40))


def shares(*turns):
    messages = tuple({"role": role, "content": text} for role, text in turns)
    rollout = Rollout(0, "p", "problem", "transcript", Verdict(0.0), reference=REFERENCE, turns=messages)
    metrics = batch_metrics(methods.get("grpo"), [Group("p", (rollout,))], [])
    return metrics["rollouts/mentions_feedback"], metrics["rollouts/quotes_reference"]


@pytest.mark.parametrize("role", ["tool", "user"])
def test_what_was_said_in_the_rollout_was_seen(role):
    assert shares(("assistant", "Go."), (role, "A hint: odd."), ("assistant", "As the hint says, 3.")) == (0.0, 0.0)
    assert shares(("assistant", "Go."), (role, "odd"), ("assistant", "As the hint says, 3.")) == (1.0, 0.0)
    assert shares(("assistant", "Go."), (role, REFERENCE), ("assistant", "Done.")) == (0.0, 0.0)
    assert shares(("assistant", "Go."), (role, REFERENCE), ("assistant", REFERENCE)) == (0.0, 0.0)
    assert shares(("assistant", REFERENCE), (role, "yes"), ("assistant", "Done.")) == (0.0, 1.0)


@pytest.mark.parametrize("role", ["tool", "user"])
def test_what_was_said_after_a_turn_was_not_seen_at_it(role):
    """A policy that says what it will be told only later has learned it from its teacher."""
    assert shares(("assistant", "As the hint says, 3."), (role, "A hint: odd."), ("assistant", "3.")) == (1.0, 0.0)
    assert shares(("assistant", REFERENCE), (role, REFERENCE), ("assistant", "Done.")) == (0.0, 1.0)


def test_the_arguments_of_calls_are_the_policys_words():
    def call(text):
        function = {"name": "submit", "arguments": {"parts": [{"text": text}], "final": True}}
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}

    def shares_of(*turns):
        rollout = Rollout(0, "p", "problem", "transcript", Verdict(0.0), reference=REFERENCE, turns=turns)
        metrics = batch_metrics(methods.get("grpo"), [Group("p", (rollout,))], [])
        return metrics["rollouts/mentions_feedback"], metrics["rollouts/quotes_reference"]

    told = {"role": "tool", "content": REFERENCE}
    assert shares_of(call(REFERENCE), told) == (0.0, 1.0)
    assert shares_of(call("what is it"), told, call(REFERENCE)) == (0.0, 0.0)
    assert shares_of(call("as the feedback says"), told) == (1.0, 0.0)
