"""DRIFT's rhythm gating: which tokens of a correct response get a larger share of its reward.

A token gets a bonus where the student gives it a higher probability than the teacher does (exceedance). The bonus
counts where the teacher's entropy falls and the student's does not (anchor). The paper publishes neither window nor gate
constants; ours are defaults.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import as_float, masked, per_rollout, same_shape, two_dimensional
from .credit import compact, positions, spread
from .scores import TokenScores


class Rhythm(NamedTuple):
    """The weights and what they are made of, each (B, T), 0 where masked; for logs."""

    weights: Tensor
    """M_t in [1, 1 + β_i·(max_bonus - 1)]."""
    bonus: Tensor
    """b_t in [0, max_bonus - 1]: how much surer the student is than the teacher."""
    gate: Tensor
    """In [0, 1]: how far the bonus is let through."""


def rhythm_weights(
    scores: TokenScores,
    mask: Tensor,
    beta: Tensor,
    *,
    margin: float = 0.2,
    tau: float = 1.0,
    max_bonus: float = 2.0,
    window: int = 8,
    anchor_scale: float = 1.0,
    mix: float = 1.0,
    floor: float = 0.5,
    ceiling: float = 2.0,
    gate_floor: float = 0.0,
    gate_power: float = 1.0,
) -> Tensor:
    """M_t = 1 + β_i·gate_t·b_t, the weight of each token of a correct response in the reward branch. No gradient.

    Args:
        scores: with teacher, fields (B, T).
        mask: (B, T), 1 on tokens the student generated.
        beta: (B,) β_i >= 0: 1 for problems of medium difficulty (paper); in the released code the problem's gates, each
            times a weight of its own (published: 1 for the medium gate, the others off).
        margin, tau, max_bonus: μ, τ and B_max of the exceedance bonus (published: 0.2, 1, 2).
        window: W, tokens on each side whose entropies are compared.
        anchor_scale: a, steepness of the anchor's gate.
        mix: λ, how much the anchor counts.
        floor, ceiling: m_min and m_max, the range of the anchor multiplier.
        gate_floor, gate_power: gate_t becomes gate_floor + (1 - gate_floor)·gate_t^gate_power (released code; 0 and 1 change
            nothing).

    Returns:
        (B, T), float32: in [1, 1 + β_i·(max_bonus - 1)], 0 where masked.

    Raises:
        ValueError: on differing shapes, scores without a teacher, or a constant out of range.
    """
    return rhythm(
        scores,
        mask,
        beta,
        margin=margin,
        tau=tau,
        max_bonus=max_bonus,
        window=window,
        anchor_scale=anchor_scale,
        mix=mix,
        floor=floor,
        ceiling=ceiling,
        gate_floor=gate_floor,
        gate_power=gate_power,
    ).weights


@torch.no_grad()
def rhythm(
    scores: TokenScores,
    mask: Tensor,
    beta: Tensor,
    *,
    margin: float = 0.2,
    tau: float = 1.0,
    max_bonus: float = 2.0,
    window: int = 8,
    anchor_scale: float = 1.0,
    mix: float = 1.0,
    floor: float = 0.5,
    ceiling: float = 2.0,
    gate_floor: float = 0.0,
    gate_power: float = 1.0,
) -> Rhythm:
    """``rhythm_weights`` with its parts. Same arguments."""
    if scores.teacher_logp is None or scores.teacher_entropy is None:
        raise ValueError(
            "scores: rhythm needs the teacher's log-probabilities and entropies; score the batch with a teacher"
        )
    two_dimensional("mask", mask)
    for name in ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy"):
        same_shape("mask", mask, **{f"scores.{name}": getattr(scores, name)})
    per_rollout("beta", beta, mask.shape[0])
    for name, fine in {
        "max_bonus": max_bonus >= 1.0,
        "window": window >= 1,
        "floor": 0.0 <= floor <= 1.0,
        "ceiling": ceiling > 1.0,
        "gate_floor": 0.0 <= gate_floor <= 1.0,
        "gate_power": gate_power > 0.0,
    }.items():
        if not fine:
            raise ValueError(
                f"{name}: out of range; needs max_bonus >= 1, window >= 1, 0 <= floor <= 1 < ceiling, 0 <= gate_floor <= 1, "
                "gate_power > 0"
            )
    bonus = exceedance_bonus(
        masked(scores.student_logp, mask),
        masked(scores.teacher_logp, mask),
        margin=margin,
        tau=tau,
        max_bonus=max_bonus,
    )
    strength = anchor(scores.student_entropy, scores.teacher_entropy, mask, window=window)
    gate = anchor_gate(strength, mask, anchor_scale=anchor_scale, mix=mix, floor=floor, ceiling=ceiling)
    gate = masked(gate_floor + (1.0 - gate_floor) * gate.pow(gate_power), mask)
    weights = 1.0 + as_float(beta).clamp(min=0.0).unsqueeze(1) * gate * bonus
    return Rhythm(masked(weights, mask), masked(bonus, mask), gate)


def exceedance_bonus(
    student_logp: Tensor, teacher_logp: Tensor, *, margin: float, tau: float, max_bonus: float
) -> Tensor:
    """b_t = min(exp(τ·max(ℓS - ℓT - μ, 0)), B_max) - 1, (B, T)."""
    return (tau * (student_logp - teacher_logp - margin).clamp(min=0.0)).exp().clamp(max=max_bonus) - 1.0


def entropy_drop(entropy: Tensor, mask: Tensor, *, window: int) -> Tensor:
    """max(mean entropy of the ``window`` tokens before t - mean of those after t, 0), (B, T), 0 where masked.

    Windows hold valid tokens only, never t itself, and are cut at the response's ends; with nothing on one side there
    is no drop.
    """
    column = positions(mask)
    padded = F.pad(compact(masked(entropy, mask), column), (window, window))
    sums = padded.unfold(1, window, 1).sum(-1)  # sums[:, j]: the window that starts j - W tokens into the response
    place, length = torch.arange(mask.shape[1], device=mask.device), mask.bool().sum(1, keepdim=True)
    earlier, later = place.clamp(max=window), (length - 1 - place).clamp(max=window)
    before = sums[:, : mask.shape[1]] / earlier.clamp(min=1)
    after = sums[:, window + 1 :] / later.clamp(min=1)
    drop = (before - after).clamp(min=0.0) * ((earlier > 0) & (later > 0))
    return masked(spread(drop, column), mask)


def anchor(student_entropy: Tensor, teacher_entropy: Tensor, mask: Tensor, *, window: int) -> Tensor:
    """D_t = max(Drop_T - Drop_S, 0)·max(H_S - H_T, 0): the teacher has just made up its mind, the student has not.
    (B, T)."""
    ahead = entropy_drop(teacher_entropy, mask, window=window) - entropy_drop(student_entropy, mask, window=window)
    surer = masked(student_entropy, mask) - masked(teacher_entropy, mask)
    return ahead.clamp(min=0.0) * surer.clamp(min=0.0)


def anchor_gate(
    strength: Tensor, mask: Tensor, *, anchor_scale: float, mix: float, floor: float, ceiling: float
) -> Tensor:
    """D_t to gate_t in [0, 1], (B, T).

    z = D standardised within the response (population deviation; 0 where D is constant), g = 2·max(σ(a·z) - ½, 0),
    m = (1 + λ·g) over its response's mean, clipped to [floor, ceiling]; gate = clip((m - 1)/(ceiling - 1), 0, 1).
    """
    count = mask.bool().sum(1, keepdim=True).clamp(min=1)
    residual = masked(strength - strength.sum(1, keepdim=True) / count, mask)
    deviation = (residual.square().sum(1, keepdim=True) / count).sqrt()
    z = residual / deviation.clamp(min=1e-6)
    g = masked(2.0 * (torch.sigmoid(anchor_scale * z) - 0.5).clamp(min=0.0), mask)
    m = (1.0 + mix * g) / (1.0 + mix * g.sum(1, keepdim=True) / count)
    return masked(((m.clamp(floor, ceiling) - 1.0) / (ceiling - 1.0)).clamp(0.0, 1.0), mask)
