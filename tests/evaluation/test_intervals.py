"""Intervals and the paired comparison, against SciPy's numbers (1.16) and by counting."""

import itertools
import re

import numpy as np
import pytest

from errata.evaluation import interval, paired
from errata.evaluation.intervals import bca, wilson

SHARES = [0.125, 0.0, 0.5, 0.25, 0.0, 0.875, 0.375, 0.0, 0.625, 0.125, 1.0, 0.25]
DIFFERENCES = [0.25, 0.5, -0.125, 0.375, 0.0, 0.625, 0.25, -0.25]


@pytest.mark.parametrize(
    ("solved", "n", "low", "high"),  # scipy.stats.binomtest(solved, n).proportion_ci(method="wilson")
    [
        (8, 8, 0.6755924351161198, 1.0),
        (3, 10, 0.10779126740630102, 0.6032218525388546),
        (0, 5, 0.0, 0.43448246478317476),
    ],
)
def test_wilsons_interval_is_scipys(solved, n, low, high):
    assert wilson(solved / n, n) == pytest.approx((low, high), abs=1e-12)
    assert interval([1.0] * solved + [0.0] * (n - solved)) == pytest.approx((low, high), abs=1e-12)


def test_the_bootstraps_interval_is_scipys():
    # scipy.stats.bootstrap((SHARES,), np.mean, n_resamples=200_000, method="BCa"): 0.1875, 0.5625
    assert bca(SHARES, resamples=50_000) == pytest.approx((0.1875, 0.5625), abs=1e-9)
    assert interval(SHARES, seed=3) == interval(SHARES, seed=3)
    low, high = interval(SHARES)
    assert (low, high) == pytest.approx((0.1875, 0.5625), abs=0.03)
    wide_low, wide_high = interval(SHARES, level=0.99)
    assert wide_low < low < high < wide_high


def test_problems_that_are_all_alike_still_have_a_width():
    assert interval([0.5, 0.5, 0.5]) == wilson(0.5, 3)
    assert interval([1.0]) == wilson(1.0, 1)


@pytest.mark.parametrize(("n", "share"), [(5, 0.9), (10, 0.5), (20, 0.05)])
def test_wilsons_interval_holds_the_truth_at_few_problems(n, share):
    """By exact enumeration over the number of solved problems: near the stated 95 %, where the percentile bootstrap of problems
    that are all solved has no width."""
    from math import comb

    covered = 0.0
    for solved in range(n + 1):
        low, high = interval([1.0] * solved + [0.0] * (n - solved))
        covered += comb(n, solved) * share**solved * (1 - share) ** (n - solved) * (low <= share <= high)
    assert covered > 0.91


@pytest.mark.parametrize("values", [[], [1.5], [float("nan")], [[0.5]]])
def test_values_that_are_none(values):
    with pytest.raises(ValueError, match=r"values: must be numbers in \[0, 1\], one per problem"):
        interval(values)
    with pytest.raises(ValueError, match=re.escape("level: must be in (0, 1), got 1.0")):
        interval([0.5], level=1.0)


def rows(shares, k=8):
    """Judged completions: of problem i the first ``k * shares[i]`` are solved."""
    return [{"problem_id": str(i), "score": float(j < k * share)} for i, share in enumerate(shares) for j in range(k)]


def test_the_paired_comparison_counts_all_sign_flips():
    found = paired(rows([0.5 + d / 2 for d in DIFFERENCES], 16), rows([0.5 - d / 2 for d in DIFFERENCES], 16))
    assert found.difference == pytest.approx(np.mean(DIFFERENCES))
    assert found.n_problems == 8
    # scipy.stats.permutation_test((DIFFERENCES,), |mean|, permutation_type="samples"): 0.140625
    assert found.p_value == 0.140625
    by_hand = [
        abs(np.dot(signs, DIFFERENCES)) >= abs(sum(DIFFERENCES)) for signs in itertools.product([1, -1], repeat=8)
    ]
    assert found.p_value == np.mean(by_hand)
    assert found.low <= 0 < found.difference < found.high


def test_many_problems_take_random_flips():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 5, size=60) / 8
    same, better = paired(rows(base), rows(base)), paired(rows(base + 0.375), rows(base))
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.low < 0 < same.high
    assert better.difference == 0.375
    assert better.p_value == 1 / 2001
    assert better.low > 0


def test_a_paired_comparison_needs_the_same_problems():
    with pytest.raises(ValueError, match="rows: problem '2' is in one of the two only; evaluate both on the same"):
        paired(rows([0.5, 0.5, 0.5]), rows([0.5, 0.5]))
    with pytest.raises(ValueError, match="rows: there are none"):
        paired([], [])
    half = paired([{"problem_id": "a", "score": 0.5}], [{"problem_id": "a", "score": 0.0}], threshold=0.5)
    assert half.difference == 1.0
