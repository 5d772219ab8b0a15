"""The signs of collapse in a run's log."""

import json
import math
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.training.signs import Sign, Steps, signs_of_evaluations, signs_of_steps


def evaluation(step, accuracy, half=0.05, **more):
    ends = {"avg@4_low": accuracy - half, "avg@4_high": accuracy + half}
    return {"step": step, "n_problems": 8, "avg@4": accuracy, **ends, **more}


def teacher(accuracy, student, error=0.05, problems=16):
    lead = {"teacher_lead": accuracy - student, "teacher_lead_se": error}
    return {"teacher_accuracy": accuracy, "student_accuracy": student, "teacher_problems": problems, **lead}


def names(signs):
    return [(s.name, s.acts) for s in signs]


def test_an_accuracy_two_errors_below_its_best_is_a_sign():
    # A half width of .049 is a standard error of .025: two of the difference are .0707.
    rows = [evaluation(0, 0.3, 0.049), evaluation(50, 0.4, 0.049)]
    assert signs_of_evaluations([*rows, evaluation(100, 0.33, 0.049)], 4) == []
    assert signs_of_evaluations([*rows, evaluation(100, 0.329, 0.049)], 4) == [
        Sign("accuracy", "avg@4 fell from 0.400 at step 50 to 0.329", acts=False)
    ]
    # Below half of the best at two evaluations in a row it acts.
    for last, acts in ((0.19, 0.21), False), ((0.21, 0.19), False), ((0.19, 0.19), True):
        low = [evaluation(100 + 50 * i, accuracy, 0.049) for i, accuracy in enumerate(last)]
        assert names(signs_of_evaluations([*rows, *low], 4)) == [("accuracy", acts)]
    assert names(signs_of_evaluations([*rows, evaluation(100, 0.0, 0.0)], 4)) == [("accuracy", False)]
    assert signs_of_evaluations([*rows, evaluation(100, 0.0, 0.0, n_problems=7)], 4) == []
    assert signs_of_evaluations([], 4) == []


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([evaluation(0, 0.3, **teacher(0.1, 0.3))], [("teacher", True)]),
        ([evaluation(0, 0.3, **teacher(0.21, 0.3))], []),  # within two errors
        ([evaluation(0, 0.3, **teacher(0.1, 0.3, problems=7))], []),
        ([evaluation(0, 0.3)], []),  # no teacher
        # The student improves all the same: what the teacher says of its tokens is of use.
        ([evaluation(0, 0.1), evaluation(50, 0.5, **teacher(0.2, 0.5))], []),
        ([evaluation(0, 0.5), evaluation(50, 0.5, **teacher(0.2, 0.5))], [("teacher", True)]),
    ],
)
def test_a_teacher_that_is_worse_than_the_student_is_a_sign(rows, expected):
    assert names(signs_of_evaluations(rows, 4)) == expected


def steps(first, last, window=10):
    return [dict(first) for _ in range(window)] + [dict(last) for _ in range(window)]


SHORT = (
    {"completions/mean_length": 50, "teacher/divergence": 0.04},
    {"completions/mean_length": 20, "teacher/divergence": 0.09},
)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ({"reward": 0.5, "entropy": 1.0}, {"reward": 0.5, "entropy": 0.34}, []),
        ({"reward": 0.5, "entropy": 1.0}, {"reward": 0.5, "entropy": 0.33}, [("entropy", False)]),
        ({"reward": 0.5, "entropy": 1.0}, {"reward": 0.4, "entropy": 3.1}, [("entropy", True)]),
        ({"reward": 0.5, "entropy": 1.0}, {"reward": 0.6, "entropy": 0.1}, []),  # it learned
        ({"reward": 0.5, **SHORT[0]}, {"reward": 0.4, **SHORT[1]}, [("length", True)]),
        ({"reward": 0.5, **SHORT[0]}, {"reward": 0.6, **SHORT[1]}, []),
        (SHORT[0], SHORT[1], [("length", False)]),
        ({"rollouts/quotes_reference": 0.1}, {"rollouts/quotes_reference": 0.31}, [("quotes", False)]),
        ({"rollouts/mentions_feedback": 0.1}, {"rollouts/mentions_feedback": 0.3}, []),
        ({"context/none": 0.95}, {"context/none": 0.95}, [("context", False)]),
        ({"context/none": 0.95, "groups/solve_all": 0.9}, {"context/none": 0.95, "groups/solve_all": 0.9}, []),
        ({"rollouts/unjudged": 0.0}, {"rollouts/unjudged": 0.6}, [("judge", False)]),
    ],
)
def test_the_signs_of_steps_and_which_of_them_act(first, last, expected):
    assert names(signs_of_steps(steps(first, last))) == expected
    assert signs_of_steps(steps(first, last)[:19]) == []


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ([0.24] * 30, [("reward", True)]),
        ([0.26] * 30, []),
        ([0.24] * 20 + [0.26] * 10, []),  # it comes back
        ([0.5] * 10 + [0.0] * 20, []),  # two windows
    ],
)
def test_a_reward_that_stays_below_half_of_its_best_is_a_sign(last, expected):
    assert names(signs_of_steps([{"reward": r} for r in [0.1] * 5 + [0.5] * 10 + last])) == expected


def test_noise_is_no_fall_of_the_reward():
    # Deviations of .175 and .105: errors .055 and .033, together .065. The best window's mean is .15, the last ones' .05.
    best = [0.5, 0.25, 0.0, 0.25, 0.0, 0.25, 0.0, 0.25, 0.0, 0.0]
    assert sum(best) == 1.5
    last = [0.0, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.0] * 3
    assert signs_of_steps([{"reward": r} for r in best + last]) == []
    assert names(signs_of_steps([{"reward": r} for r in best + [0.0] * 30])) == [("reward", True)]


def reward_fell(rewards, window):
    """All windows, one by one."""

    def error(w):
        return stdev(w) / math.sqrt(len(w)) if len(w) > 1 else 0.0

    if len(rewards) < 4 * window:
        return False
    best = max((rewards[i : i + window] for i in range(len(rewards) - 4 * window + 1)), key=fmean)
    last = [rewards[len(rewards) - n * window :][:window] for n in (3, 2, 1)]
    return all(
        fmean(w) < 0.5 * fmean(best) and fmean(best) - fmean(w) > 2 * math.hypot(error(w), error(best)) for w in last
    )


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=30),
    st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.25]), max_size=20),
    st.integers(1, 4),
    st.integers(0, 50),
)
def test_what_is_kept_of_the_steps_is_enough_and_survives_a_checkpoint(before, after, window, saved):
    rewards = before + after
    watch = Steps(window)
    for i, reward in enumerate(rewards):
        if i == saved:
            state = json.loads(json.dumps(watch.state_dict()))
            watch = Steps(window)
            watch.load_state_dict(state)
        watch.add({"reward": reward})
        found = [s.name for s in watch.signs()]
        assert ("reward" in found) == reward_fell(rewards[: i + 1], window)


def test_what_is_kept_of_the_steps_does_not_grow():
    watch = Steps(2)
    sizes = []
    for step in range(200):
        watch.add({"reward": 0.25, "entropy": 0.5, **SHORT[0], "step": step})
        sizes.append(len(json.dumps(watch.state_dict()["last"])) + len(json.dumps(watch.state_dict()["first"])))
    assert sizes[-1] == sizes[20]


def test_lengths_are_compared_on_the_steps_that_have_a_divergence():
    rows = [{"completions/mean_length": 90}] * 10 + steps(*SHORT) + [{"completions/mean_length": 90}] * 10
    assert names(signs_of_steps(rows)) == [("length", False)]
