"""OPSD: the frozen base, shown the reference solution, is the teacher of every rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from errata.methods.sdpo import SDPO
from errata.validate import Positive


@dataclass(frozen=True, kw_only=True)
class OPSD(SDPO):
    """SDPO's stream by forward KL, with the reference as feedback, a frozen teacher and a clip of each vocabulary entry.

    arXiv 2601.18734, section 3; the defaults are those of the released code (github.com/siyan-zhao/OPSD since 2026-03-18,
    ``--beta 0 --jsd_token_clip 0.05 --fixed_teacher``). There a term pi_T(a) * log(pi_T(a) / pi_S(a)) counts at most the clip
    before the sum over the vocabulary, so the clipped sum can be negative. The teacher thinks; that the student does not is
    the recipe's ``chat_template_kwargs``.
    """

    idea: ClassVar[str] = (
        "match the frozen base that reads the reference solution, each vocabulary entry's term clipped"
    )
    paper: ClassVar[str] = "arXiv 2601.18734"
    needs: ClassVar[str] = "reference solutions"

    sources: tuple[str, ...] = ("reference",)
    divergence: str = "forward_kl"
    entry_clip: Positive | None = 0.05
    importance_clip: Positive | None = None
    teacher: str = "frozen"
    context_template: str = "opsd"
    teacher_chat_template_kwargs: Mapping[str, Any] = field(default_factory=lambda: {"enable_thinking": True})
