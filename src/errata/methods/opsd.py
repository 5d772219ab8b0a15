"""OPSD: the frozen base, shown the reference solution, is the teacher of every rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from errata.methods.sdpo import SDPO
from errata.validate import Positive, TopK


@dataclass(frozen=True, kw_only=True)
class OPSD(SDPO):
    """SDPO's stream with the reference as feedback, a frozen teacher and a per-token clip.

    arXiv 2601.18734.
    """

    idea: ClassVar[str] = "match the frozen base that reads the reference solution, each token's divergence clipped"
    paper: ClassVar[str] = "arXiv 2601.18734"
    needs: ClassVar[str] = "reference solutions"

    sources: tuple[str, ...] = ("reference",)
    teacher: str = "frozen"
    support: str = "teacher_topk"
    top_k: TopK | None = 100
    token_clip: Positive | None = 0.05
