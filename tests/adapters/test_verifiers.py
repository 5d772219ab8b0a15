"""errata's tasks as a taskset of the real verifiers library."""

import asyncio

import pytest

pytest.importorskip("verifiers.v1", reason="needs verifiers: pip install 'errata[verifiers]'")

import verifiers.v1 as vf
from verifiers.v1.utils import loaders


def taskset(**settings):
    kind = loaders.taskset_class("errata-taskset")
    config = loaders.taskset_config_type("errata-taskset").model_validate({"id": "errata-taskset", **settings})
    return kind(config)


def trace_of(task, answer):
    """A finished rollout of one answer, as a harness would leave it."""
    messages = [vf.UserMessage(content=task.data.prompt_text), vf.AssistantMessage(content=answer)]
    nodes = [
        vf.MessageNode(parent=None if i == 0 else i - 1, message=message, sampled=i == 1)
        for i, message in enumerate(messages)
    ]
    about = vf.TraceTask(type="ErrataTask", data=task.data, key=task.key)
    return vf.Trace(task=about, agent=vf.AgentInfo(config=vf.AgentConfig()), nodes=nodes, is_completed=True)


def score(task, answer):
    trace = trace_of(task, answer)
    asyncio.run(task.score(trace))
    return trace


def test_a_task_of_errata_is_a_taskset():
    found = list(taskset(source="rulebook/new-rule").take(3))
    assert [task.data.id for task in found] == [f"rulebook/new-rule/test/{i}" for i in range(3)]
    assert [task.data.idx for task in found] == [0, 1, 2]
    assert found[0].data.prompt.endswith("=?")
    assert len({task.key for task in found}) == 3


def test_its_reward_is_the_verdicts_score_and_the_trace_keeps_the_feedback():
    (task,) = taskset(source="rulebook/new-rule", args={"feedback": "correction"}).take(1)
    right = score(task, task.data.reference)
    assert (right.reward, right.info["verdict"]["score"]) == (1.0, 1.0)
    wrong = score(task, "9=9")
    assert wrong.reward == 0.0
    assert wrong.info["verdict"]["feedback"]
    assert asyncio.run(task.validate(None)) is True


def test_a_verifier_that_fails_is_an_error_of_the_task(monkeypatch):
    (task,) = taskset(source="rulebook/new-rule").take(1)
    monkeypatch.setattr(task.config.problems, "_verifier", lambda **columns: 1 / 0)
    with pytest.raises(vf.TaskError, match="ZeroDivisionError"):
        score(task, "1")
