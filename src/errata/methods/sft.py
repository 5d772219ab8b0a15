"""SFT: likelihood of the reference, the off-policy end of imitation (DAgger is the on-policy one)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from errata.methods.base import Batch, Method, Signals, zeros
from errata.ops.scores import Objective


@dataclass(frozen=True, kw_only=True)
class SFT(Method):
    """Minimise the mean negative log-likelihood of the reference's tokens, the end of the turn among them.

    The trainer puts each row's reference where a sampled completion would stand, so verifiers judge the references. The
    baseline "SFT on references" of arXiv 2606.05152 and 2601.18734.
    """

    idea: ClassVar[str] = "raise the likelihood of the reference solution; samples nothing"
    paper: ClassVar[str] = "baseline of arXiv 2606.05152, 2601.18734"
    needs: ClassVar[str] = "reference solutions in every row"
    learns_from: ClassVar[Literal["rollouts", "reference"]] = "reference"

    def signals(self, batch: Batch) -> Signals:
        mask = batch.mask.float()
        return Signals(advantage=mask, rl_weight=mask, sd_weight=zeros(batch))

    def objective(self) -> Objective:
        # With an advantage of 1 and no sampling probabilities this surrogate is -log pi_S(token).
        return Objective(surrogate="importance")
