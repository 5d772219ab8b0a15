"""What counts as solved, and a group's successes."""

import math

import pytest

from errata.records import Group, Rollout, Verdict, is_solved


@pytest.mark.parametrize(
    ("score", "threshold", "solved"),
    [
        (1.0, 1.0, True),
        (0.5, 1.0, False),
        (0.5, 0.5, True),
        (0.49, 0.5, False),
        (0.0, 0.0, True),
        (-0.5, -1.0, True),
        (None, 0.0, False),
        (math.nan, 0.0, False),
    ],
)
def test_solved_means_a_score_of_at_least_the_threshold(score, threshold, solved):
    assert is_solved(score, threshold) is solved
    assert Rollout(0, "p", "?", "x", Verdict(score)).solved(threshold) is solved


def test_the_successes_of_a_group_with_partial_credit():
    group = Group("p", tuple(Rollout(i, "p", "?", str(i), Verdict(s)) for i, s in enumerate([0.0, 0.5, 1.0, None])))
    assert [r.index for r in group.successes(0.5)] == [1, 2]
    assert [r.index for r in group.successes()] == [2]
