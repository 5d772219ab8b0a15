"""DRIFT on several tasks: the rollouts of a task are learned from as its own stage says, beside those of other tasks."""

import random
from dataclasses import replace

import torch
from tests.methods.batches import make_batch

from errata import methods
from errata.experience import Curriculum, Experience
from errata.ops.scores import TokenScores
from errata.records import Group, Rollout, Verdict

TASKS = ["early", "late", "early", "late"]


def rollouts(rewards, tasks):
    return [
        Rollout(i, str(i), "p", f"c{i}", Verdict(r), row={"task": t}, entropy=1.0 - i / 10, length=9 - i)
        for i, (r, t) in enumerate(zip(rewards, tasks, strict=True))
    ]


def memory(late=1):
    """The task ``early`` is in stage 1, ``late`` in the given one."""
    experience = Experience(curriculum=Curriculum(2), tasks=("early", "late"))
    for step in range(3 if late == 2 else 1):
        held = [Group("q", tuple(rollouts([None], ["late"])))]
        held += [Group("p", tuple(rollouts([None], ["early"])))] * (step == 0)
        experience.observe(held, step=step)
    assert [experience.stage_of({"task": t}) for t in ("early", "late")] == [1, late]
    return experience


def batch(experience, rewards=(1.0, 1.0, 0.0, 0.0)):
    torch.manual_seed(0)
    logp, teacher, entropy, other = (torch.randn(4, 6) for _ in range(4))
    scores = TokenScores(logp, teacher, entropy.abs(), other.abs(), None)
    made = make_batch(
        torch.ones(4, 6).bool(),
        scores,
        reward=torch.tensor(rewards),
        success=torch.tensor(rewards) >= 1,
        advantage=torch.tensor([0.5, 0.5, -0.5, -0.5]),
        memory=experience,
    )
    return replace(made, rollouts=rollouts(rewards, TASKS))


def test_each_rollout_is_learned_from_in_the_stage_of_its_task():
    drift = methods.get("drift", tasks=("early", "late"))
    mixed = drift.signals(batch(memory(late=2)))
    first = drift.signals(batch(memory(late=1)))
    second = drift.signals(batch(Experience(curriculum=Curriculum(0), tasks=("early", "late"))))
    for row, wanted in [(0, first), (1, second), (2, first), (3, second)]:
        assert torch.equal(mixed.sd_weight[row], wanted.sd_weight[row])
        assert torch.equal(mixed.rl_weight[row], wanted.rl_weight[row])
    # By hand: warm-up distils both of early; of late the right one is reinforced, the wrong one, of medium difficulty, hardly.
    assert mixed.sd_weight.sum(1).tolist()[:3] == [6.0, 0.0, 6.0]
    assert mixed.rl_weight[[0, 2, 3]].sum() == 0
    assert mixed.rl_weight[1].min() > 0
    assert mixed.metrics["curriculum/stage"] == 1.5
    assert (first.metrics["curriculum/stage"], second.metrics["curriculum/stage"]) == (1.0, 2.0)


def test_scores_are_wanted_of_right_rollouts_in_stage_2_alone():
    drift = methods.get("drift", tasks=("early", "late"))
    assert drift.score_mask(batch(memory(late=2))).any(1).tolist() == [False, True, False, False]
    assert not drift.score_mask(batch(memory(late=1))).any()
    assert drift.needs_entropy(memory(late=2))


def test_a_context_is_chosen_as_the_stage_of_its_task_says():
    """Stage 1 shows the success with the highest entropy, stage 2 the shortest one."""
    drift, experience = methods.get("drift", tasks=("early", "late")), memory(late=2)
    for task, shown in [("early", "c0"), ("late", "c2")]:
        group = Group("p", tuple(rollouts([1.0, 1.0, 1.0, 0.0], [task] * 4)))
        context = drift.context(group.rollouts[3], group, memory=experience, epoch=0.0, rng=random.Random(0))
        assert context.solution == shown
