"""DistIL: distributional DAgger. Cross-entropy to the expert at the student's own states, and credit for the future."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from errata.methods.base import Batch, Signals, TeacherMethod, masked_mean, one_of, where, zeros
from errata.ops.credit import center, excess_cost, future_cost, limit_scale, persistent_share
from errata.validate import NonNegative, Positive, PositiveShare


@dataclass(frozen=True, kw_only=True)
class DistIL(TeacherMethod):
    """Minimise E_{y~student} sum_t CE_t (arXiv 2606.05152).

    The student chooses the states, so the gradient has two terms: the local one, sum_t grad CE_t, and a policy gradient
    with A_t = -C_t, where C_t = sum_{i>t} cost_i is the disagreement still to come. Preset ``distil-exact`` (``baseline:
    leave_one_out``, ``discount: 1``) is the exact gradient for feedback that does not depend on the rollout (reference,
    sibling). Part of that gradient rewards short answers, since every token costs what a teacher that saw a solution
    will always disagree on. The defaults leave that part out, look about 50 tokens ahead, shrink credit that is mostly noise
    and limit its scale: docs/length.md.
    """

    idea: ClassVar[str] = "forward cross-entropy to the teacher, plus credit for future disagreement"
    paper: ClassVar[str] = "arXiv 2606.05152"
    needs: ClassVar[str] = "successful siblings, textual feedback or references; samples of an expert suffice"
    score_fields: ClassVar[tuple[str, ...]] = ("teacher_entropy", "divergence")

    sources: tuple[str, ...] = ("sibling", "feedback", "reference")
    credit: str = "sum"
    """none: local term only. sum: the exact gradient. mean: C_t / max(T-t-1, 1), as released for science and code.
    reweight: CE_t * (1 + mean C_t), as released for mathematics."""
    cost: str = "kl"
    """What is summed into C_t. ce: as released. kl: CE less the teacher's entropy, so that a perfect student is stationary."""
    discount: PositiveShare = 0.98
    """gamma in (0, 1] of C_t = sum gamma^(i-t-1) cost_i: credit looks about 1/(1 - gamma) tokens ahead."""
    baseline: str = "per_token"
    """per_token: from each cost the other rollouts' cost at that position is subtracted before the sum, so length is neutral.
    leave_one_out: the other rollouts' C is, after the sum. position: likewise, over the batch. none: as released."""
    shrink: bool = True
    """With ``baseline: per_token``: whether credit is multiplied by the share of its variance that is more than the noise of
    unrelated tokens (``persistent_share``): about 0 where an early decision does not change later disagreement."""
    credit_limit: Positive | None = 0.5
    """Largest root mean square of a batch's credit; above it all are divided by one number. ``None``: no limit.
    .5 is the most that GRPO's unscaled advantage of 0/1 rewards can have."""
    future_weight: NonNegative = 1.0
    """Multiplies the second term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("credit", self.credit, ("none", "sum", "mean", "reweight"))
        one_of("cost", self.cost, ("ce", "kl"))
        one_of("baseline", self.baseline, ("none", "position", "leave_one_out", "per_token"))
        if self.divergence not in ("forward_ce", "forward_kl"):
            raise ValueError(
                f"divergence: DistIL's is forward_ce or forward_kl, got {self.divergence!r}; see methods sdpo, opsd"
            )

        if self.credit != "none" and self.support != "full":  # the cost and its entropy on one support; gradients agree
            object.__setattr__(self, "divergence", "forward_kl" if self.cost == "kl" else "forward_ce")

    def minimum_access(self) -> tuple[str, str]:
        if self.cost == "kl" and self.credit != "none" and self.support != "student_topk":
            return "topk", "cost: kl subtracts its entropy, and method_args: {cost: ce} does without"
        return super().minimum_access()

    def score_mask(self, batch: Batch) -> Tensor:
        return batch.teacher_mask if self.credit != "none" else torch.zeros_like(batch.mask)

    def signals(self, batch: Batch) -> Signals:
        with_teacher, weight = batch.teacher_mask, batch.teacher_weight
        if self.credit == "none":
            return Signals(advantage=zeros(batch), rl_weight=zeros(batch), sd_weight=weight)

        known = {"forward_ce": "ce", "forward_kl": "kl"}[self.divergence]
        sign = {("ce", "kl"): -1, ("kl", "ce"): 1}.get((known, self.cost), 0)
        entropy, divergence = (where(weight > 0, x) for x in (batch.scores.teacher_entropy, batch.scores.divergence))
        cost = (divergence + sign * entropy) * weight
        kind = "sum" if self.credit == "sum" else "mean"
        ratio = batch.token_ratio
        future = future_cost(cost, with_teacher, kind=kind, discount=self.discount, ratio=ratio)
        metrics = {"future_credit": masked_mean(future, with_teacher), "local_cost": masked_mean(cost, with_teacher)}
        if self.credit == "reweight":
            reweighted = weight * (1 + self.future_weight * future)
            return Signals(zeros(batch), zeros(batch), reweighted, {"future_credit": future}, metrics=metrics)

        if self.baseline == "per_token":
            excess = excess_cost(cost, with_teacher, batch.group, batch.rollout_ratio)
            credit = future_cost(excess, with_teacher, kind=kind, discount=self.discount, ratio=ratio)
            if self.shrink:
                share = persistent_share(excess, with_teacher, discount=self.discount)
                credit, metrics["persistent_share"] = credit * share, share
        else:
            credit = center(future, with_teacher, batch.group, baseline=self.baseline)
        if self.credit_limit is not None:
            credit = limit_scale(credit, with_teacher, self.credit_limit)
        metrics["future_share"] = _share(self.future_weight * credit.abs(), cost, with_teacher)
        return Signals(
            advantage=-credit,
            rl_weight=self.future_weight * with_teacher.float(),
            sd_weight=weight,
            per_token={"future_credit": future},
            metrics=metrics,
        )


def _share(future: Tensor, local: Tensor, mask: Tensor) -> float:
    """Mean |future credit| as a share of itself plus the mean |local cost|."""
    total = masked_mean(future, mask) + masked_mean(local.abs(), mask)
    return masked_mean(future, mask) / total if total else 0.0
