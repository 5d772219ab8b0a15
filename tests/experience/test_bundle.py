"""The bundle: what one step's groups do to ledger, buffer and curriculum, and that a resumed run is the same run."""

import json
import random

import pytest

from errata.experience import Curriculum, Experience, FeedbackHistory, PassRateLedger, SuccessBuffer
from errata.records import Earlier, Group, Rollout, Verdict


def group(problem_id, *rewards, texts=None, verdicts=None):
    texts = texts or [f"answer {i}" for i in range(len(rewards))]
    verdicts = verdicts or [Verdict(reward, "told", "trace") for reward in rewards]
    return Group(problem_id, tuple(Rollout(i, problem_id, "?", texts[i], v) for i, v in enumerate(verdicts)))


def full():
    return Experience(
        PassRateLedger("paper", max_problems=3),
        SuccessBuffer(2, max_problems=3),
        Curriculum(4, reset_every=3),
        FeedbackHistory(2, max_problems=3),
    )


def test_one_step_by_hand():
    experience = full()
    experience.observe([group("a", 1.0, 0.0, None, 0.0), group("b", None, None), group("c", 1.0, 1.0)], step=0)
    assert experience.rate("a") == pytest.approx(1 / 3)  # the attempt that was not judged counts nowhere
    assert "b" not in experience.ledger
    assert experience.rate("b") == 0.5
    assert [entry.text for entry in experience.buffer.entries("a")] == ["answer 0"]
    assert [entry.text for entry in experience.buffer.entries("c")] == ["answer 0", "answer 1"]
    assert experience.metrics() == {
        "curriculum/stage": 1, "ledger/problems": 2,
        "buffer/problems": 2, "buffer/texts": 3, "buffer/hits": 0, "buffer/misses": 0, "buffer/evictions": 0,
        "history/problems": 0, "history/attempts": 0,
    }  # fmt: skip
    experience.observe([], step=1)  # the next step: what failed is earlier now
    assert [entry.attempt for entry in experience.history.earlier("a")] == ["answer 1", "answer 3"]
    assert experience.metrics()["history/problems"] == 1


def test_the_threshold_decides_what_is_solved():
    experience = Experience(PassRateLedger("paper"), SuccessBuffer(), threshold=0.5)
    experience.observe([group("a", 0.6, 0.4)], step=0)
    assert experience.rate("a") == 0.5
    assert [entry.reward for entry in experience.buffer.entries("a")] == [0.6]


def test_the_history_holds_judged_failures_that_were_told_something():
    experience = Experience(history=FeedbackHistory(9), threshold=0.5)
    verdicts = [
        Verdict(0.4, "too low", "trace"),
        Verdict(0.6, "well done", "trace"),
        Verdict(0.0),
        Verdict(None, "Traceback", "error"),
        Verdict(0.0, "it is 4", "correction", leaks_answer=True),
        Verdict(0.0, "the verifier's own trouble", "error"),
    ]
    experience.observe([group("a", verdicts=verdicts, texts=list("uvwxyz"))], step=3)
    assert experience.history.earlier("a") == ()
    experience.observe([group("b", 1.0)], step=4)
    assert experience.history.earlier("a") == (Earlier("u", "too low", False, 3), Earlier("y", "it is 4", True, 3))


def test_the_plateau_sees_the_pass_rate_over_judged_attempts():
    experience = Experience(curriculum=Curriculum(None, window=1, patience=1))
    experience.observe([group("a", 1.0, 0.0, None), group("b", 1.0)], step=0)
    assert experience.curriculum.state_dict()["best"] == pytest.approx(2 / 3)
    experience.observe([group("a", None)], step=1)
    assert experience.stage == 1
    experience.observe([group("a", 0.0)], step=2)
    assert experience.stage == 2


def test_a_due_reset_leaves_the_step_that_is_being_recorded():
    experience = full()  # warm-up until step 4, resets at 7, 10, ...
    for step in range(7):
        experience.observe([group("a", 1.0)], step=step)
    assert experience.stage == 2
    experience.observe([group("b", 0.0)], step=7)
    assert "a" not in experience.ledger
    assert experience.rate("b") == 0.0


def test_without_parts():
    experience = Experience()
    experience.observe([group("a", 1.0)], step=0)
    assert (experience.stage, experience.rate("a"), experience.metrics(), experience.state_dict()) == (1, 0.5, {}, {})
    with pytest.raises(ValueError, match="state: has no 'buffer'"):
        Experience(buffer=SuccessBuffer()).load_state_dict(experience.state_dict())


def run(experience, steps, rng):
    for step in steps:
        dice = random.Random(step)
        groups = [group(name, *(dice.choice([0.0, 1.0, None]) for _ in range(3))) for name in dice.sample("abcde", 2)]
        experience.observe(groups, step=step)
        for name in "abcde":
            experience.buffer.draw(name, rng, exclude=["answer 0"])
    return experience


@pytest.mark.parametrize("cut", [0, 3, 4, 5, 8, 20])
def test_a_resumed_run_is_byte_for_byte_the_uninterrupted_one(cut):
    rng = random.Random(0)
    resumed = full()
    saved = json.dumps(run(full(), range(cut), rng).state_dict(), sort_keys=True)
    resumed.load_state_dict(json.loads(saved))
    assert json.dumps(resumed.state_dict(), sort_keys=True) == saved
    run(resumed, range(cut, 20), rng)
    whole = run(full(), range(20), random.Random(0))
    assert json.dumps(resumed.state_dict(), sort_keys=True) == json.dumps(whole.state_dict(), sort_keys=True)
    assert resumed.metrics() == whole.metrics()


def test_the_buffer_stores_from_its_own_least_reward_on():
    """The release's ``min_reward``: below it nothing is stored, from it on also what is not solved."""
    for least, stored in [(None, ["answer 0"]), (1.0, ["answer 0"]), (0.5, ["answer 0", "answer 1"]), (1.5, [])]:
        experience = Experience(buffer=SuccessBuffer(min_reward=least))
        experience.observe([group("a", 1.0, 0.5, 0.4, None)], step=0)
        assert [entry.text for entry in experience.buffer.entries("a")] == stored
