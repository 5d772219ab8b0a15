"""SRPO: right attempts by reward, wrong ones by self-distillation."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from errata.experience import Memory
from errata.methods.base import Batch, Signals, TeacherMethod, masked_mean
from errata.ops.routing import entropy_weights
from errata.records import Group, Rollout, TeacherContext
from errata.validate import NonNegative


@dataclass(frozen=True, kw_only=True)
class SRPO(TeacherMethod):
    """Correct: GRPO. Incorrect with a teacher: JS, weighted by exp(-beta H_T). Incorrect without: GRPO.

    arXiv 2604.02288.
    """

    idea: ClassVar[str] = "reinforce right attempts, distil wrong ones, trusting a teacher less where it is unsure"
    paper: ClassVar[str] = "arXiv 2604.02288"
    needs: ClassVar[str] = "a score, and successful siblings or textual feedback"
    score_fields: ClassVar[tuple[str, ...]] = ("teacher_entropy",)

    divergence: str = "js"
    entropy_beta: NonNegative = 1.0
    """beta of exp(-beta H_T); the weights are normalised to mean 1 over the routed tokens."""

    def context(
        self, rollout: Rollout, group: Group, *, memory: Memory, epoch: float, rng: random.Random
    ) -> TeacherContext:
        context = super().context(rollout, group, memory=memory, epoch=epoch, rng=rng)
        if context.is_informative and rollout.solved(self.success_threshold):
            return replace(context, use_teacher=False, why=context.why + "; its scores are not used")
        return context

    def score_mask(self, batch: Batch) -> Tensor:
        return batch.teacher_mask & (~batch.success & batch.judged)[:, None]

    def signals(self, batch: Batch) -> Signals:
        distilled = self.score_mask(batch)
        reinforced = batch.mask & ~distilled
        weight = entropy_weights(batch.scores.teacher_entropy, distilled, beta=self.entropy_beta) * batch.teacher_weight
        return Signals(
            advantage=batch.advantage[:, None] * reinforced,
            rl_weight=reinforced.float(),
            sd_weight=weight,
            metrics={"routing/distilled": masked_mean(distilled.float(), batch.mask)},
        )
