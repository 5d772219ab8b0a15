"""95 % intervals over problems that hold at few problems, and the paired comparison of two policies.

Completions of one problem are not independent, so problems are what is resampled, never completions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from errata.records import is_solved

Floats = NDArray[np.float64]

RESAMPLES = 2_000
"""Bootstrap draws, and random sign flips."""
_EXACT = 14
"""Problems up to which all 2^n sign flips are counted."""
_NORMAL = NormalDist()


def wilson(share: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of n independent problems (Wilson 1927). Its width is never 0.

    ``wilson(1.0, 8) == (0.676, 1.0)``, rounded: eight problems, all solved, may be a policy that solves two thirds.
    """
    z = _NORMAL.inv_cdf((1 + level) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bca(values: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval of a mean (Efron 1987, eq. 2.3 and 6.6).

    Args:
        values: (problems,), not all the same.
    """
    table: Floats = np.asarray(values, dtype=np.float64)
    n = len(table)
    rng = np.random.default_rng(seed)
    means = np.stack([table[rng.integers(n, size=n)].mean() for _ in range(resamples)])
    # How far the bootstrap's median lies from the mean, half of those that are equal counted.
    below = float(((means < table.mean()).mean() + (means <= table.mean()).mean()) / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / (2 * resamples)), 1 - 1 / (2 * resamples)))
    without = (table.sum() - table) / (n - 1)  # the mean without each problem
    away = without.mean() - without
    acceleration = float((away**3).sum() / (6 * (away**2).sum() ** 1.5))
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        shifted = bias + _NORMAL.inv_cdf(share)
        ends.append(_NORMAL.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def interval(values: ArrayLike, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The interval of the mean of one number per problem, each in [0, 1].

    Wilson's where every problem is solved or not, or all have the same value; else the bootstrap's (BCa), within [0, 1].

    Raises ``ValueError`` for no values, one outside [0, 1], or a level outside (0, 1).
    """
    table: Floats = np.asarray(values, dtype=np.float64)
    if table.ndim != 1 or len(table) == 0 or not ((table >= 0) & (table <= 1)).all():
        raise ValueError(f"values: must be numbers in [0, 1], one per problem, got {values!r:.100}")
    if not 0 < level < 1:
        raise ValueError(f"level: must be in (0, 1), got {level}")
    if np.isin(table, (0.0, 1.0)).all() or (table == table[0]).all():
        return wilson(float(table.mean()), len(table), level=level)
    return bca(table, level=level, seed=seed)


class Paired(NamedTuple):
    """Two policies on the same problems."""

    difference: float
    """The first's avg@k less the second's."""
    low: float
    """End of the 95 % interval over problems."""
    high: float
    p_value: float
    """Chance of a difference at least this large, if it made no difference which policy answered which problem."""
    n_problems: int


def paired(
    first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]], *, threshold: float = 1.0, seed: int = 0
) -> Paired:
    """The difference of avg@k of two policies on the same problems, with a p-value.

    Each problem's difference keeps or changes its sign (the sign-flip test; Dror et al. 2018, section 3.3.2): all 2^n ways for
    up to 14 problems, else 2,000 random ones, the one seen among them. Both sides count.

    Args:
        first: judged completions, rows with ``problem_id`` and ``score`` as :func:`errata.evaluation.sample` returns them.
        second: likewise, of the same problems.
        threshold: the score from which a completion counts as solved.
        seed: of the bootstrap and the random flips.
    Raises:
        ValueError: no rows, or a problem that only one of the two has, with its name.
    """
    one, other = (_solved(rows, threshold) for rows in (first, second))
    alone = sorted(one.keys() ^ other.keys())
    if alone or not one:
        name = f"problem {alone[0]!r} is in one of the two only" if alone else "there are none"
        raise ValueError(f"rows: {name}; evaluate both on the same problems")
    table: Floats = np.array([one[name] - other[name] for name in one])
    n, seen = len(table), abs(float(table.sum()))
    if n <= _EXACT:
        signs = np.array(np.meshgrid(*[[1.0, -1.0]] * n)).reshape(n, -1).T
        sums = np.abs(signs @ table)
        p_value = float((sums >= seen - 1e-9).mean())
    else:
        flips = np.random.default_rng(seed).choice([1.0, -1.0], size=(RESAMPLES, n))
        p_value = float(((np.abs(flips @ table) >= seen - 1e-9).sum() + 1) / (RESAMPLES + 1))
    if (table == table[0]).all():
        low, high = (2 * end - 1 for end in wilson((float(table[0]) + 1) / 2, n))
    else:
        low, high = bca(table, seed=seed)
    return Paired(float(table.mean()), low, high, p_value, n)


def _solved(rows: Iterable[Mapping[str, Any]], threshold: float) -> dict[str, float]:
    """Each problem's share of solved completions."""
    scores: dict[str, list[bool]] = {}
    for row in rows:
        scores.setdefault(str(row["problem_id"]), []).append(is_solved(row["score"], threshold))
    return {name: sum(found) / len(found) for name, found in scores.items()}
