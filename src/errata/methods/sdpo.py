"""SDPO: the policy, shown a success or feedback, is the teacher of its own rollout, by JS or reverse KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from errata.methods.base import Batch, Signals, TeacherMethod, zeros


@dataclass(frozen=True, kw_only=True)
class SDPO(TeacherMethod):
    """w_SD = m where the teacher was shown something, w_RL = 0 (arXiv 2601.20802).

    Defaults are the science setting but for the support: exact full vocabulary, where the released code keeps the
    student's top 100 and one tail bucket (preset ``sdpo-science``).
    """

    idea: ClassVar[str] = "match a teacher that saw a success or feedback, at the student's own tokens"
    paper: ClassVar[str] = "arXiv 2601.20802"
    needs: ClassVar[str] = "successful siblings or textual feedback"

    divergence: str = "js"
    denominators: str = "routed"

    def signals(self, batch: Batch) -> Signals:
        return Signals(advantage=zeros(batch), rl_weight=zeros(batch), sd_weight=batch.teacher_weight)
