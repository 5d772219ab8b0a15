"""What the engine works on: the N valid tokens of a call as rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModelRows:
    """One model at N tokens: logits z = softcap(scale·(W h + b)) / temperature."""

    hidden: Tensor
    """(N, H)."""
    weight: Tensor
    """(V, H)."""
    bias: Tensor | None
    """(V,), finite."""
    scale: float
    softcap: float | None
    temperature: float
    dtype: torch.dtype
    """What the products' operands are rounded to: the inputs' own type, or autocast's."""


@dataclass(frozen=True)
class SparseRows:
    """A teacher known by a few tokens at each of N positions."""

    tokens: Tensor
    """(N, K) ids."""
    logp: Tensor
    """(N, K) their log-weights; -inf where a position has fewer."""
    tail: bool
    """Whether the remaining probability is one more bucket of all other tokens. If not, the weights sum to 1."""


class Group(NamedTuple):
    """Consecutive rows with the same kind of teacher."""

    n_rows: int
    teacher: ModelRows | SparseRows | None


class RowScores(NamedTuple):
    """(N,) each; the teacher's fields are 0 at tokens without a teacher."""

    student_logp: Tensor
    teacher_logp: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    divergence: Tensor


@dataclass
class Gradients:
    """Sums over all tiles, in the accumulation type; ``None`` where not needed."""

    hidden: Tensor | None
    """(N, H)."""
    weight: Tensor | None
    """(V, H), contiguous; overwritten."""
    bias: Tensor | None
    """(V,)."""
