"""Per-token scores from hidden states and heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import divergence as reference
from .checks import masked
from .divergence import log_softmax


class TokenScores(NamedTuple):
    """What any method needs to know of each sampled token; each (B, T), float32, in nats, 0 where masked."""

    student_logp: Tensor
    """Log-probability of the sampled token under the student."""
    teacher_logp: Tensor | None
    """The same under the teacher; ``None``, as all the teacher's fields, when no teacher was asked."""
    student_entropy: Tensor
    """Entropy of the student's next-token distribution."""
    teacher_entropy: Tensor | None
    """Entropy of the teacher's."""
    divergence: Tensor | None
    """The chosen divergence between the two."""


def token_scores(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | None,
    tokens: Tensor,
    *,
    divergence: str = "forward_ce",
    alpha: float = 0.5,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
) -> TokenScores:
    """Scores of every sampled token. Plain form; holds (B, T, V)."""
    keep = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()

    def of(logits: Tensor) -> tuple[Tensor, Tensor]:
        logp = log_softmax(logits)
        chosen = logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return masked(chosen, keep), masked(-(logp.exp() * logp).sum(-1), keep)

    student = F.linear(student_hidden.float(), student_head.float(), student_bias) / temperature
    logp, entropy = of(student)
    if teacher_hidden is None or teacher_head is None:
        return TokenScores(logp, None, entropy, None, None)
    with torch.no_grad():
        teacher = F.linear(teacher_hidden.float(), teacher_head.float(), teacher_bias) / temperature
        teacher_logp, teacher_entropy = of(teacher)
    value = reference.divergence(student, teacher, divergence, alpha=alpha)
    return TokenScores(logp, teacher_logp, entropy, teacher_entropy, masked(value, keep))
