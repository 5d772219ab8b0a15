"""DistIL: distributional DAgger. Cross-entropy to the expert at the student's own states, and credit for the future."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from errata.methods.base import Batch, Signals, TeacherMethod, masked_mean, one_of, where, zeros
from errata.ops.credit import center, future_cost


@dataclass(frozen=True, kw_only=True)
class DistIL(TeacherMethod):
    """Minimise E_{y~student} sum_t CE_t (arXiv 2606.05152).

    The student chooses the states, so the gradient has two terms: the local one, sum_t grad CE_t, and a policy gradient
    with A_t = -C_t, where C_t = sum_{i>t} cost_i is the disagreement still to come. ``credit="sum"`` with any baseline is
    the exact gradient for feedback that does not depend on the rollout (reference, sibling); a rollout's own trace depends
    on its later tokens, and the sum is then an approximation.
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
    discount: float = 1.0
    """gamma of C_t = sum gamma^(i-t-1) cost_i."""
    baseline: str = "leave_one_out"
    """none (as released), position, or leave_one_out: the other rollouts' C at the same position is subtracted."""
    future_weight: float = 1.0
    """Multiplies the second term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("credit", self.credit, ("none", "sum", "mean", "reweight"))
        one_of("cost", self.cost, ("ce", "kl"))
        one_of("baseline", self.baseline, ("none", "position", "leave_one_out"))
        if self.divergence not in ("forward_ce", "forward_kl"):
            raise ValueError(
                f"divergence: DistIL's is forward_ce or forward_kl, got {self.divergence!r}; see methods sdpo, opsd"
            )

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

        entropy, divergence = (where(weight > 0, x) for x in (batch.scores.teacher_entropy, batch.scores.divergence))
        cross_entropy = divergence + (entropy if self.divergence == "forward_kl" else 0)
        cost = (cross_entropy - entropy if self.cost == "kl" else cross_entropy) * weight
        kind = "sum" if self.credit == "sum" else "mean"
        future = future_cost(cost, with_teacher, kind=kind, discount=self.discount)
        metrics = {"future_credit": masked_mean(future, with_teacher), "local_cost": masked_mean(cost, with_teacher)}
        if self.credit == "reweight":
            reweighted = weight * (1 + self.future_weight * future)
            return Signals(zeros(batch), zeros(batch), reweighted, {"future_credit": future}, metrics=metrics)

        credit = center(future, with_teacher, batch.group, baseline=self.baseline)
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
