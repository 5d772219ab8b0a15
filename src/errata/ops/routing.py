"""Difficulty of a problem, and the weights of the policy-gradient and the distillation branch. DRIFT and SRPO, on which it
builds. No gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import as_float, masked, same_shape


class Difficulty(NamedTuple):
    """Membership in the three difficulties, each (B,), summing to 1."""

    hard: Tensor
    medium: Tensor
    easy: Tensor


class BranchWeights(NamedTuple):
    """Weight of the policy-gradient and of the distillation branch, each (B,)."""

    rl: Tensor
    sd: Tensor


@torch.no_grad()
def difficulty_gates(
    pass_rate: Tensor, *, hard: float = 0.3, easy: float = 0.7, temperature: float = 0.08
) -> Difficulty:
    """Soft gates of DRIFT's released code: h = σ((hard-p)/T), e = σ((p-easy)/T), m = (1-h)(1-e), normalised to sum 1.

    Args:
        pass_rate: (B,) smoothed pass rate of each response's problem, in [0, 1].

    Returns:
        ``Difficulty(hard, medium, easy)``, each (B,), float32.
    """
    p = as_float(pass_rate)
    h, e = torch.sigmoid((hard - p) / temperature), torch.sigmoid((p - easy) / temperature)
    m = (1.0 - h) * (1.0 - e)
    total = h + m + e
    return Difficulty(h / total, m / total, e / total)


@torch.no_grad()
def difficulty_bins(pass_rate: Tensor, *, hard: float = 0.2, easy: float = 0.8) -> Difficulty:
    """The hard bins of DRIFT's paper, one-hot: hard below ``hard``, easy above ``easy``, medium between (both ends
    included)."""
    p = as_float(pass_rate)
    h, e = (p < hard).to(p.dtype), (p > easy).to(p.dtype)
    return Difficulty(h, 1.0 - h - e, e)


@torch.no_grad()
def paper_weights(difficulty: Difficulty, correct: Tensor, has_teacher: Tensor) -> BranchWeights:
    """DRIFT's paper: incorrect responses distil with weight 1, correct ones learn from reward with γ = 0 hard, 1
    medium, ½ easy.

    An incorrect response without a teacher learns from reward with weight 1 (SRPO's rule). Everything (B,).
    """
    same_shape("correct", correct, has_teacher=has_teacher, pass_rate=difficulty.hard)
    right, with_teacher = as_float(correct.bool()), as_float(has_teacher.bool())
    gamma = difficulty.medium + 0.5 * difficulty.easy
    return BranchWeights(rl=right * gamma + (1.0 - right) * (1.0 - with_teacher), sd=(1.0 - right) * with_teacher)


@torch.no_grad()
def released_weights(
    difficulty: Difficulty, correct: Tensor, has_teacher: Tensor, *, distil_correct: bool = False
) -> BranchWeights:
    """DRIFT's released code, with h, m, e the soft gates. Everything (B,).

    =====================  =====================  ===================
    response               w_RL                   w_SD
    =====================  =====================  ===================
    incorrect, teacher     0                      h + 0.35·e
    correct, teacher       m + 0.3·h + 0.05·e     0, or 0.7·h with ``distil_correct``
    no teacher             1                      0
    =====================  =====================  ===================
    """
    same_shape("correct", correct, has_teacher=has_teacher, pass_rate=difficulty.hard)
    right, with_teacher = as_float(correct.bool()), as_float(has_teacher.bool())
    h, m, e = difficulty
    rl = with_teacher * right * (m + 0.3 * h + 0.05 * e) + (1.0 - with_teacher)
    sd = with_teacher * ((1.0 - right) * (h + 0.35 * e) + (right * 0.7 * h if distil_correct else 0.0))
    return BranchWeights(rl, sd)


@torch.no_grad()
def entropy_weights(teacher_entropy: Tensor, mask: Tensor, *, beta: float = 1.0) -> Tensor:
    """SRPO's larger weight where the teacher's entropy is low: exp(-β·H_T), scaled to mean 1 over the tokens of
    ``mask`` (the routed ones of this batch).

    Args:
        teacher_entropy: (B, T), nats.
        mask: (B, T).

    Returns:
        (B, T), float32, 0 where masked.
    """
    same_shape("teacher_entropy", teacher_entropy, mask=mask)
    entropy = masked(teacher_entropy, mask)
    # Scaling by the weight of the lowest entropy changes nothing after normalisation and keeps the sum away from 0.
    least = as_float(teacher_entropy).masked_fill(~mask.bool(), torch.inf).amin()
    weight = masked((-beta * (entropy - least)).exp(), mask)
    return masked(weight * mask.bool().sum() / weight.sum(), mask)
