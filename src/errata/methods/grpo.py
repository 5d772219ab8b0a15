"""GRPO: rewards alone, the baseline of reinforcement learning from verifiable rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from errata.methods.base import Batch, Method, Signals, zeros


@dataclass(frozen=True, kw_only=True)
class GRPO(Method):
    """A_i = r_i - mean of its group, the same for every token (arXiv 2402.03300).

    Without the division by the deviation: Dr. GRPO, arXiv 2503.20783.

    Whether the advantage is divided by the group's standard deviation, and how tokens are averaged, are TRL's own
    ``scale_rewards`` and ``loss_type``; the papers this library follows compare against ``none`` and the token mean.
    """

    idea: ClassVar[str] = "raise attempts that beat their group's mean reward"
    paper: ClassVar[str] = "arXiv 2402.03300"
    needs: ClassVar[str] = "a score"
    trl_loss: ClassVar[bool] = True

    def signals(self, batch: Batch) -> Signals:
        mask = batch.mask.float()
        return Signals(advantage=batch.advantage[:, None] * mask, rl_weight=mask, sd_weight=zeros(batch))
