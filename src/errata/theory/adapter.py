"""The one place where the laboratory calls a training method: exact scores in, the method's signals out.

Everything else in ``errata.theory`` knows the method ``distil`` only through :func:`distil_signals`. A change of the
``Method`` or ``Batch`` interface is made here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from errata.methods.base import Batch, Scores
from errata.methods.distil import DistIL
from errata.ops.scores import TokenScores


class Weights(NamedTuple):
    """What the method decided for each token, (N,T) float64 each, without gradient."""

    advantage: Tensor
    """A_t of the policy gradient."""
    rl_weight: Tensor
    """Weight of the policy gradient, w_RL."""
    sd_weight: Tensor
    """Weight of the divergence, w_SD."""


def distil_signals(
    cross_entropy: Tensor,
    teacher_entropy: Tensor,
    mask: Tensor,
    group: Tensor,
    *,
    credit: str,
    cost: str,
    baseline: str,
    discount: float,
) -> Weights:
    """The signals of the method ``distil`` (``errata.methods.distil``) for a batch of N rollouts, every one with a teacher.

    Args:
        cross_entropy: (N,T) CE_t in nats, no gradient.
        teacher_entropy: (N,T) H_T in nats.
        mask: (N,T) bool, the rollouts' tokens.
        group: (N,) int64, one id for each group.
        credit, cost, baseline, discount: the method's settings of these names.

    Raises:
        ValueError: as the method does, for an unknown setting.
    """
    method = DistIL(
        credit=credit,
        cost=cost,
        baseline=baseline,
        discount=discount,
        shrink=False,
        credit_limit=None,
        divergence="forward_ce",
    )
    every = torch.ones(len(group), dtype=torch.bool)
    unused = torch.zeros(len(group), dtype=torch.float64)
    scores = TokenScores(
        student_logp=torch.zeros_like(cross_entropy),
        teacher_logp=None,
        student_entropy=torch.zeros_like(cross_entropy),
        teacher_entropy=teacher_entropy,
        divergence=cross_entropy,
    )
    batch = Batch(
        rollouts=(),
        contexts=(),
        memory=method.memory(),
        mask=mask,
        reward=unused,
        advantage=unused,
        group=group,
        has_teacher=every,
        has_context=every,
        success=~every,
        scores=Scores(scores, method.score_fields, "DistIL"),
    )
    signals = method.signals(batch)
    return Weights(signals.advantage.double(), signals.rl_weight.double(), signals.sd_weight.double())
