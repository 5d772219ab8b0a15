"""The oracle's decision for each token of a generation batch: an advantage and the weights of the two streams.

A list for each attempt, with one ``Signal`` for each of its tokens. Formulas as in the papers that docs/methods.md names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, prod, sqrt
from typing import Any

from tests.oracle.attempts import Attempt, Memory, bonus_weight, gates
from tests.oracle.tokens import Score

Rows = list[list[float]]
"""Of each attempt, a number for each token."""


@dataclass
class Signal:
    """Of one token."""

    advantage: float = 0.0
    rl: float = 0.0
    sd: float = 0.0


def decide(
    kind: str,
    s: dict[str, Any],
    attempts: list[Attempt],
    scores: list[list[Score]],
    memory: Memory,
    ratio: Rows | None = None,
) -> list[list[Signal]]:
    """``ratio``: the sampler's correction, one number for each token or one for the attempt."""
    if kind == "GRPO":
        return [[Signal(a.advantage, 1.0, 0.0) for _ in a.tokens] for a in attempts]
    if kind == "SFT":
        return [[Signal(1.0, 1.0, 0.0) for _ in a.tokens] for a in attempts]
    if kind in ("SDPO", "OPSD"):
        return [[Signal(sd=float(a.scored)) for _ in a.tokens] for a in attempts]
    if kind == "DistIL":
        return distil(s, attempts, scores, memory, ratio)
    known: dict[str, Callable[..., list[list[Signal]]]] = {"SRPO": srpo, "DRIFT": drift}
    return known[kind](s, attempts, scores, memory)


def srpo(s: dict[str, Any], attempts: list[Attempt], scores: list[list[Score]], memory: Memory) -> list[list[Signal]]:
    routed = [a for a in attempts if a.scored and a.reward is not None and not a.solved(s["success_threshold"])]
    raw = {a.index: [exp(-s["entropy_beta"] * t.teacher_entropy) for t in scores[a.index]] for a in routed}
    count, total = sum(map(len, raw.values())), sum(map(sum, raw.values()))
    found = []
    for a in attempts:
        if a.index in raw:
            found.append([Signal(sd=weight * count / total) for weight in raw[a.index]])
        else:
            found.append([Signal(a.advantage, 1.0, 0.0) for _ in a.tokens])
    return found


# -- DistIL -------------------------------------------------------------------------------------------------------------


def distil(
    s: dict[str, Any],
    attempts: list[Attempt],
    scores: list[list[Score]],
    memory: Memory,
    ratio: Rows | None = None,
) -> list[list[Signal]]:
    if s["credit"] == "none":
        return [[Signal(sd=float(a.scored)) for _ in a.tokens] for a in attempts]
    costs: Rows = []
    for a, row in zip(attempts, scores, strict=True):
        costs.append([_cost(s, t) for t in row] if a.scored else [])
    of_tokens = ratio is not None and len(ratio[0]) > 1
    each = ratio if ratio is not None and of_tokens else [[1.0] * len(a.tokens) for a in attempts]
    weights = [row[0] for row in ratio] if ratio is not None and not of_tokens else [1.0] * len(attempts)
    future = [_future(row, s, r) for row, r in zip(costs, each, strict=True)]
    if s["credit"] == "reweight":
        return [
            [
                Signal(sd=1 + s["future_weight"] * future[a.index][t]) if a.scored else Signal()
                for t in range(len(a.tokens))
            ]
            for a in attempts
        ]
    credit = future
    if s["baseline"] == "per_token":
        excess = _less_others(costs, attempts, alone=0.0, weights=weights)
        credit = [_future(row, s, r) for row, r in zip(excess, each, strict=True)]
        if s["shrink"]:
            share = _persistent_share(excess, s["discount"])
            credit = [[share * c for c in row] for row in credit]
    elif s["baseline"] == "leave_one_out":
        credit = _less_others(future, attempts, alone=None)
    elif s["baseline"] == "position":
        credit = _less_position_mean(future)
    if s["credit_limit"] is not None:
        flat = [c for row in credit for c in row]
        size = sqrt(sum(c * c for c in flat) / len(flat)) if flat else 0.0
        if size > s["credit_limit"]:
            credit = [[c * s["credit_limit"] / size for c in row] for row in credit]
    return [
        [Signal(-credit[a.index][t], s["future_weight"], 1.0) if a.scored else Signal() for t in range(len(a.tokens))]
        for a in attempts
    ]


def _persistent_share(excess: list[list[float]], discount: float) -> float:
    """1 - sum of V / sum of C squared, at least 0."""
    signal = noise = 0.0
    for row in excess:
        for t in range(len(row)):
            later = [discount ** (i - t - 1) * row[i] for i in range(t + 1, len(row))]
            signal += sum(later) ** 2
            noise += sum(c * c for c in later)
    return max(0.0, 1 - noise / signal) if signal > 0 else 0.0


def _cost(s: dict[str, Any], t: Score) -> float:
    """KL to the teacher, or cross-entropy."""
    if s["cost"] == "kl" and s["divergence"] == "forward_ce":
        return t.divergence - t.teacher_entropy
    if s["cost"] == "ce" and s["divergence"] == "forward_kl":
        return t.divergence + t.teacher_entropy
    return t.divergence


def _future(cost: list[float], s: dict[str, Any], ratio: list[float]) -> list[float]:
    """Of each token, the discounted cost of those after it; divided by their number unless credit is the sum.

    A cost is multiplied by the ratios of the tokens between.
    """
    found = []
    for t in range(len(cost)):
        later = cost[t + 1 :]
        total = sum(s["discount"] ** i * c * prod(ratio[t + 1 : t + 1 + i]) for i, c in enumerate(later))
        found.append(total if s["credit"] == "sum" else total / max(len(later), 1))
    return found


def _less_others(rows: Rows, attempts: list[Attempt], alone: float | None, weights: list[float] | None = None) -> Rows:
    """Each number less the mean of the other attempts at the problem that have one at that place.

    ``alone``: what stands where no other has; ``None``: the number itself.
    """
    found: Rows = []
    for a, row in zip(attempts, rows, strict=True):
        new = []
        for t, value in enumerate(row):
            others = [
                (other[t], 1.0 if weights is None else weights[b.index])
                for b, other in zip(attempts, rows, strict=True)
                if b.index // 4 == a.index // 4 and b.index != a.index and t < len(other)
            ]
            if others:
                new.append(value - sum(c * w for c, w in others) / sum(w for _, w in others))
            else:
                new.append(value if alone is None else alone)
        found.append(new)
    return found


def _less_position_mean(rows: Rows) -> Rows:
    found: Rows = []
    for row in rows:
        there = [[other[t] for other in rows if t < len(other)] for t in range(len(row))]
        found.append([value - sum(there[t]) / len(there[t]) for t, value in enumerate(row)])
    return found


# -- DRIFT --------------------------------------------------------------------------------------------------------------


def drift(s: dict[str, Any], attempts: list[Attempt], scores: list[list[Score]], memory: Memory) -> list[list[Signal]]:
    if memory.stage == 1:
        return [[Signal(sd=float(a.scored)) for _ in a.tokens] for a in attempts]
    found = []
    for a in attempts:
        rate = memory.pass_rate(a.problem)
        right = a.reward is not None and a.solved(s["success_threshold"])
        rl, sd = _branches(s, gates(s, rate), right, a.shown is not None)
        if a.reward is None:
            rl = sd = 0.0
        if not a.scored:
            sd = 0.0
        pace = [1.0] * len(a.tokens)
        if s["rhythm"] and right and a.scored and a.tokens:
            pace = rhythm(s, scores[a.index], bonus_weight(s, rate))
        found.append([Signal(a.advantage, rl * pace[t], sd) for t in range(len(a.tokens))])
    return found


def _branches(
    s: dict[str, Any], difficulty: tuple[float, float, float], right: bool, context: bool
) -> tuple[float, float]:
    """Weights of reward and of distillation."""
    hard, medium, easy = difficulty
    if s["routing"] == "released":
        if not context:
            return 1.0, 0.0
        if not right:
            return 0.0, hard + 0.35 * easy
        return medium + 0.3 * hard + 0.05 * easy, 0.0 if s["binary_routing"] else 0.7 * hard
    if right:
        return medium + 0.5 * easy, 0.0
    return (0.0, 1.0) if context else (1.0, 0.0)


def rhythm(s: dict[str, Any], row: list[Score], beta: float) -> list[float]:
    """M_t of one right attempt."""
    n, w = len(row), s["window"]

    def drop(values: list[float], t: int) -> float:
        before, after = values[max(t - w, 0) : t], values[t + 1 : t + 1 + w]
        if not before or not after:
            return 0.0
        return max(sum(before) / len(before) - sum(after) / len(after), 0.0)

    by_teacher, by_student = [x.teacher_entropy for x in row], [x.student_entropy for x in row]
    strength = [
        max(drop(by_teacher, t) - drop(by_student, t), 0.0) * max(by_student[t] - by_teacher[t], 0.0) for t in range(n)
    ]
    mean = sum(strength) / n
    deviation = max(sqrt(sum((d - mean) ** 2 for d in strength) / n), 1e-6)
    g = [2 * max(1 / (1 + exp(-s["anchor_scale"] * (d - mean) / deviation)) - 0.5, 0.0) for d in strength]
    m = [1 + s["mix"] * x for x in g]
    level = sum(m) / n
    found = []
    for t in range(n):
        clipped = min(max(m[t] / level, s["floor"]), s["ceiling"])
        gate = min(max((clipped - 1) / (s["ceiling"] - 1), 0.0), 1.0)
        gate = s["gate_floor"] + (1 - s["gate_floor"]) * gate ** s["gate_power"]
        ahead = max(row[t].student_logp - row[t].teacher_logp - s["margin"], 0.0)
        found.append(1 + beta * gate * (min(exp(s["tau"] * ahead), s["max_bonus"]) - 1))
    return found
