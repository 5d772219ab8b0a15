"""What a policy was told by tools and users in a rollout is neither a mention of hidden feedback nor a quote."""

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
