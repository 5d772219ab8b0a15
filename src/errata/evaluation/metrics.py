"""avg@k, pass@k and maj@k over problems, with intervals (``errata.evaluation.intervals``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from errata.evaluation.intervals import Floats, interval
from errata.records import is_solved


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Any:
    """Chance that at least one of k completions is solved: the unbiased estimate from n completions, c of them solved.

    1 − C(n−c, k)/C(n, k), computed in whole numbers and rounded once (Chen et al. 2021, arXiv 2107.03374, eq. 1).

    Args:
        n: completions, one number or one per problem (problems,).
        c: solved ones, likewise.
        k: completions allowed, 1 <= k <= n.
    Returns:
        A float, or a float64 array (problems,) if ``n`` or ``c`` is an array.
    Raises:
        ValueError: an argument that is not whole, k > n, or c outside [0, n], naming the problem.
    """
    attempts, right = np.broadcast_arrays(_whole("n", n), _whole("c", c))
    if not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k: must be one whole number from 1, got {k!r}")
    for index, (n_i, c_i) in enumerate(zip(attempts.ravel().tolist(), right.ravel().tolist(), strict=True)):
        if k > n_i:
            raise ValueError(f"k: is {k}, but problem {index} has n = {n_i}; lower k or sample more")
        if not 0 <= c_i <= n_i:
            raise ValueError(f"c: {c_i} right attempts of n = {n_i} at problem {index}")
    values = [_pass_at_k(int(n_i), int(c_i), int(k)) for n_i, c_i in zip(attempts.flat, right.flat, strict=True)]
    return values[0] if attempts.ndim == 0 else np.array(values, dtype=np.float64).reshape(attempts.shape)


@lru_cache(maxsize=4096)
def _pass_at_k(n: int, c: int, k: int) -> float:
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


def avg_at_k(correct: ArrayLike) -> float:
    """Mean of ``correct`` (problems, k), each entry 0/1, bool or a score: the accuracy of a single completion.

    Raises ``ValueError`` if it is not a full, finite table with at least one entry.
    """
    try:
        table = np.asarray(correct, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("correct: must be a table of numbers with the same k in every row") from None
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"correct: must be a finite table (problems, k), got shape {table.shape}")
    return float(table.mean())


def maj_at_k(answers: Sequence[Sequence[Hashable | None]], truth: Sequence[Hashable]) -> float:
    """Share of problems whose most frequent answer is right.

    Args:
        answers: k answers per problem; ``None``, a completion without an answer, does not count.
        truth: the right answer per problem.

    If several answers are equally frequent, each counts with its share, so the order of sampling does not matter.
    Raises ``ValueError`` if there are no problems or the two differ in number.
    """
    if not answers or len(answers) != len(truth):
        raise ValueError(f"answers: {len(answers)} problems against {len(truth)} in truth; give both for at least one")
    return float(np.mean([_majority(given, {right}) for given, right in zip(answers, truth, strict=True)]))


def _majority(answers: Iterable[Hashable | None], right: set[Hashable]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    most = max(votes.values(), default=0)
    winners = [answer for answer, n in votes.items() if n == most]
    return sum(answer in right for answer in winners) / len(winners) if winners else 0.0


def summary(
    rows: Iterable[Mapping[str, Any]], *, k: int | None = None, threshold: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """The numbers of one evaluation, with the keys of ``eval.jsonl``: ``n_problems``, ``k``, ``avg@8``, ``avg@8_low``, ...

    Args:
        rows: one judged completion each: ``problem_id``, ``score`` (``None``: the verifier failed; counts as not solved
            and in ``unjudged``), and if known ``length`` in tokens, ``kind`` and ``info`` as in a verdict.
        k: completions per problem; by default the number in the rows.
        threshold: the score from which a completion counts as solved (``errata.records.is_solved``).
        seed: of the bootstrap.
    Returns:
        ``n_problems``, ``k``, ``unjudged``; ``avg@k`` and ``pass@j`` for j = 1, 2, 4, ... and k, each with ``_low`` and
        ``_high``, the 95 % interval over problems; likewise ``maj@k`` if verdicts name the answer they read
        (``info["chosen"]``); ``pass_curve``, pass@1 to pass@k; ``score``, the mean of the judged completions; ``length``, the
        mean; ``format_rate``, the share of well-formed completions, if every verdict tells: by ``info["strict_format"]``, or
        by a ``kind`` that only an answer that was read, or that was not (``format``), gets.
    Raises:
        ValueError: no rows, or a problem (named) whose number of completions is not k.
    """
    problems: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        problems.setdefault(row["problem_id"], []).append(row)
    if not problems:
        raise ValueError("rows: there are none; evaluate at least one problem")
    k = len(next(iter(problems.values()))) if k is None else k
    for name, attempts in problems.items():
        if len(attempts) != k:
            raise ValueError(f"rows: problem {name!r} has {len(attempts)} attempts, expected k = {k}")
    everyone = [row for attempts in problems.values() for row in attempts]
    right = {name: sum(is_solved(row["score"], threshold) for row in attempts) for name, attempts in problems.items()}
    c = np.array(list(right.values()))

    columns: dict[str, Floats] = {f"avg@{k}": c / k}
    columns |= {f"pass@{j}": pass_at_k(k, c, j) for j in _attempts_up_to(k)}
    if any(_vote(row) is not None for row in everyone):
        columns[f"maj@{k}"] = np.array([_majority_solved(attempts, threshold) for attempts in problems.values()])
    found: dict[str, Any] = {"n_problems": len(problems), "k": k}
    for name, values in columns.items():
        low, high = interval(values, seed=seed)
        found |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    found["pass_curve"] = [float(pass_at_k(k, c, j).mean()) for j in range(1, k + 1)]
    scores = [row["score"] for row in everyone if row["score"] is not None]
    formats: list[bool | None] = [_well_formed(row) for row in everyone if row["score"] is not None]
    if None in formats:  # of some it is not known
        formats = []
    lengths = [row["length"] for row in everyone if row.get("length") is not None]
    means = {"score": scores, "format_rate": formats, "length": lengths}
    found |= {name: float(np.mean(values)) for name, values in means.items() if values}
    found["unjudged"] = len(everyone) - len(scores)
    return found


def _attempts_up_to(k: int) -> list[int]:
    return sorted({2**i for i in range(k.bit_length())} | {k})


def _vote(row: Mapping[str, Any]) -> Hashable | None:
    vote: Hashable | None = (row.get("info") or {}).get("chosen")
    return vote


def _majority_solved(attempts: Sequence[Mapping[str, Any]], threshold: float) -> float:
    # Only the verifier knows which spellings of an answer are right, so the right answers are those it accepted.
    accepted = {vote for row in attempts if (vote := _vote(row)) is not None and is_solved(row["score"], threshold)}
    return _majority(map(_vote, attempts), accepted)


_OF_READ_ANSWERS = ("answer", "choice", "constraints", "difference", "place", "tests", "trace")
"""Kinds of feedback that errata's verifiers give only where they could read the answer."""


def _well_formed(row: Mapping[str, Any]) -> bool | None:
    """Whether a judged completion is well formed; ``None`` where its verdict does not tell."""
    info = row.get("info") or {}
    if "strict_format" in info:
        return bool(info["strict_format"])
    kind = str(row.get("kind") or "").partition("+")[0]
    if kind == "format":
        return False
    # A right answer was read. A wrong one with other feedback, or with none, may not have been.
    return True if kind in _OF_READ_ANSWERS or row["score"] >= 1 else None


def _whole(name: str, value: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.size == 0 or not (np.isfinite(array) & (array == np.floor(array))).all():
        raise ValueError(f"{name}: must be whole numbers, got {value!r:.100}")
    return array.astype(np.int64)
