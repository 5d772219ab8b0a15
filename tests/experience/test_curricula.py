"""A stage for each task: switches, clocks, resets and metrics by hand; one task is as before; resumed runs are the same."""

import json
import random

import pytest

from errata.experience import Curriculum, Experience, PassRateLedger
from errata.experience.curricula import Curricula
from errata.records import Group, Rollout, Verdict


def group(problem_id, task, *rewards):
    row = {"task": task}
    return Group(
        problem_id, tuple(Rollout(i, problem_id, "?", "a", Verdict(r), row=row) for i, r in enumerate(rewards))
    )


def test_a_tasks_warm_up_counts_the_steps_that_hold_it():
    curricula = Curricula(Curriculum(3), ["a", "b"])
    seen = []
    for step, held in enumerate(["ab", "a", "a", "ab", "b", "b", "b"]):
        curricula.observe(step, dict.fromkeys(held, 0.5))
        seen.append(tuple(curricula.stages.values()))
    # a had its steps 0, 1, 2 and b its own 0, 3, 4.
    assert seen == [(1, 1), (1, 1), (1, 1), (2, 1), (2, 1), (2, 2), (2, 2)]


def test_a_batch_that_serves_several_steps_counts_as_these():
    curricula = Curricula(Curriculum(4), ["a", "b"])
    stages = []
    for step, held in [(0, "ab"), (4, "a"), (8, "a"), (12, "b")]:
        curricula.observe(step, dict.fromkeys(held, 0.5))
        stages.append(dict(curricula.stages))
    assert stages == [{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 2, "b": 1}, {"a": 2, "b": 2}]


def test_a_task_that_comes_later_begins_its_warm_up_then():
    curricula = Curricula(Curriculum(2), ["a", "b"])
    for step in range(10):
        curricula.observe(step, {"a": 0.5})
    assert curricula.stage({"task": "b"}) == 1
    for step, stage in [(10, 1), (11, 1), (12, 2)]:
        curricula.observe(step, {"a": 0.5, "b": 0.5})
        assert curricula.stage({"task": "b"}) == stage


def test_each_task_is_on_its_own_plateau():
    experience = Experience(curriculum=Curriculum(None, window=1, patience=2), tasks=("rises", "rests"))
    # rests: .5 at every step, so its third is the second without gain. rises: .0, .25, .5, .75.
    stages = []
    for step, rise in enumerate([0, 1, 2, 3]):
        rises = [1.0] * rise + [0.0] * (4 - rise)
        experience.observe([group("p", "rises", *rises), group("q", "rests", 1.0, 0.0, 1.0, 0.0)], step=step)
        stages.append((experience.stage_of({"task": "rises"}), experience.stage_of({"task": "rests"})))
    assert stages == [(1, 1), (1, 1), (1, 2), (1, 2)]
    assert experience.stage == 1
    assert experience.metrics() == {
        "curriculum/stage": 1.5,
        "tasks/rises/stage": 1,
        "tasks/rests/stage": 2,
    }


def test_names_fit_as_elsewhere():
    curricula = Curricula(Curriculum(0), ["rulebook", "search"])
    rows = [{"task": "rulebook/new-rule"}, {"task": "x", "environment": "search"}, {"task": "math"}, {}]
    assert [curricula.task(row) for row in rows] == ["rulebook", "search", "", ""]
    assert Curricula(Curriculum()).task(rows[0]) == ""


def test_a_reset_forgets_the_problems_of_its_task_alone():
    experience = Experience(PassRateLedger("paper"), curriculum=Curriculum(1, reset_every=2), tasks=("a", "b"))
    for step in range(3):
        held = [group("p", "a", 1.0), group("q", "b", 1.0)] if step == 0 else [group("p2", "a", 1.0)]
        experience.observe(held, step=step)
    assert len(experience.ledger) == 3
    experience.observe([group("p2", "a", 0.0)], step=3)  # a switched at 1, its first reset is at 3
    assert "p" not in experience.ledger
    assert experience.rate("q") == 1.0
    assert experience.rate("p2") == 0.0


def run(experience, steps):
    for step in steps:
        dice = random.Random(step)
        names = dice.sample(["a/0", "a/1", "b/0", "c/0"], 2)
        groups = [group(n, n[0], *(dice.choice([0.0, 1.0, None]) for _ in range(3))) for n in names]
        experience.observe(groups, step=2 * step)
    return experience


@pytest.mark.parametrize("tasks", [(), ("a", "b")])
@pytest.mark.parametrize("cut", [0, 1, 7])
def test_a_resumed_run_is_the_uninterrupted_one(tasks, cut):
    def new():
        return Experience(PassRateLedger(), curriculum=Curriculum(6, reset_every=4), tasks=tasks)

    saved = json.dumps(run(new(), range(cut)).state_dict())
    resumed = new()
    resumed.load_state_dict(json.loads(saved))
    assert json.dumps(resumed.state_dict()) == saved
    whole = run(new(), range(20))
    assert run(resumed, range(cut, 20)).state_dict() == whole.state_dict()
    assert resumed.metrics() == whole.metrics()


def test_the_state_of_one_curriculum_is_what_it_always_was():
    experience = Experience(curriculum=Curriculum(3))
    for step in range(5):
        experience.observe([group("p", "a", 1.0), group("q", "b", 0.0)], step=step)
    saved = {"switched_at": 3, "step": 4, "recent": [], "best": None, "without_gain": 0}
    assert experience.state_dict() == {"curriculum": saved}


def test_a_checkpoint_without_stages_by_task_goes_on_from_its_one():
    old = {"curriculum": {"switched_at": 3, "step": 9, "recent": [], "best": None, "without_gain": 0}}
    experience = Experience(curriculum=Curriculum(3), tasks=("a", "b"))
    experience.load_state_dict(old)
    experience.observe([group("p", "a", 1.0)], step=10)
    assert (experience.stage_of({"task": "a"}), experience.stage_of({"task": "b"})) == (2, 2)
    experience.observe([group("q", "b", 1.0)], step=11)
    assert experience.metrics()["tasks/b/stage"] == 2


def test_a_checkpoint_with_stages_by_task_is_refused_by_a_run_of_one():
    several = Experience(curriculum=Curriculum(3), tasks=("a", "b"))
    several.observe([group("p", "a", 1.0), group("q", "b", 1.0)], step=0)
    with pytest.raises(ValueError, match="a stage for each of a, b; name these tasks"):
        Experience(curriculum=Curriculum(3)).load_state_dict(several.state_dict())


def test_steps_never_go_back():
    curricula = Curricula(Curriculum(3), ["a"])
    curricula.observe(4, {"a": 0.5})
    with pytest.raises(ValueError, match="step: 3 lies before step 4"):
        curricula.observe(3, {"a": 0.5})
