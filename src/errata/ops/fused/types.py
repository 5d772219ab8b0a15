"""The records that ``errata.ops.scores`` takes and returns. Shapes: B rollouts, T tokens, V vocabulary, H hidden size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import one_of
from ..divergence import KINDS, check_entry_clip


class TokenScores(NamedTuple):
    """What a method can read of each sampled token: (B, T) each, float32, in nats, 0 where masked."""

    student_logp: Tensor
    """Log-probability of the sampled token under the student."""
    teacher_logp: Tensor | None
    """The same under the teacher. This and the teacher's other fields are ``None`` if the call had no teacher."""
    student_entropy: Tensor
    """Entropy of the student's next-token distribution."""
    teacher_entropy: Tensor | None
    """Entropy of the teacher's next-token distribution."""
    divergence: Tensor | None
    """The chosen divergence between the two distributions."""


@dataclass(frozen=True)
class Head:
    """An output head as Hugging Face models have them: logits = softcap·tanh(scale·(W h + b) / softcap).

    ``Head(model.lm_head.weight, softcap=model.config.final_logit_softcapping)``
    """

    weight: Tensor
    """(V, H). A sharded weight (DTensor) is gathered."""
    bias: Tensor | None = None
    """(V,); -inf forbids a token."""
    scale: float = 1.0
    """Cohere's ``logit_scale``, or 1 / Granite's ``logits_scaling``."""
    softcap: float | None = None
    """Gemma's ``final_logit_softcapping``."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) → (..., V) in float32, without gradient to the head. Meant for a few states at a time."""
        weight, bias = self.weight.detach().float(), None if self.bias is None else self.bias.detach().float()
        logits = torch.nn.functional.linear(hidden.float(), weight, bias) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class ModelStates(NamedTuple):
    """One model's last hidden states and its output head."""

    hidden: Tensor
    """(B, T, H), at the positions that predict the sampled tokens."""
    head: Tensor | Head
    """(V, H), or a ``Head``."""


class SparseTeacher(NamedTuple):
    """A teacher known by a few tokens of each position: a server's top-k log-probabilities, or samples.

    ``SparseTeacher(samples, torch.full(samples.shape, -math.log(n)), mask, tail=False)`` makes forward cross-entropy
    -mean log π_S(a'). For n samples a' of the teacher this estimates the exact cross-entropy without bias.
    """

    tokens: Tensor
    """(B, T, K) ids in [0, V); anything where ``logp`` is -inf."""
    logp: Tensor
    """(B, T, K) log-weights of these tokens; -inf where a position has fewer."""
    mask: Tensor
    """(B, T) the positions where it is known."""
    tail: bool
    """True: the remaining probability is one more bucket that holds all other tokens. False: the weights sum to 1, the
    student's log-probabilities stay as they are, and ``teacher_logp`` and ``teacher_entropy`` are unknown (0)."""


class Streams(NamedTuple):
    """The two weighted streams of the loss, (B, T) each: Σ rl_weight·PG(advantage) + Σ sd_weight·D.

    The weights contain their denominators (``ops.reduce``). ``None`` is 0 everywhere. None of them gets a gradient.
    """

    advantage: Tensor | None
    """Required with ``rl_weight``."""
    rl_weight: Tensor | None
    """Weight of the policy gradient."""
    sd_weight: Tensor | None
    """Weight of the divergence to the teacher."""


@dataclass(frozen=True)
class DivergenceSettings:
    """Which divergence between teacher and student, over which part of the vocabulary.

    Raises:
        ValueError: for an unknown choice or a value out of range.
    """

    kind: str = "forward_ce"
    """As ``ops.divergence.divergence``."""
    alpha: float = 0.5
    """Weight of the teacher in the mixture of ``js``."""
    support: str = "full"
    """``full``, or ``student_topk`` or ``teacher_topk`` as ``ops.divergence.topk_divergence``."""
    top_k: int = 100
    """Number of tokens of a top-k support."""
    tail: bool | None = None
    """Whether a top-k support has a bucket for the other tokens. ``None``: yes for ``student_topk`` alone."""
    entry_clip: float | None = None
    """Largest value of one vocabulary entry's term, applied before the sum over the vocabulary. ``None``: no limit."""

    def __post_init__(self) -> None:
        one_of("divergence kind", self.kind, KINDS)
        one_of("support", self.support, ("full", "student_topk", "teacher_topk"))
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha: {self.alpha} is not in [0, 1]")
        if self.top_k < 1:
            raise ValueError(f"top_k: {self.top_k} tokens of support; give at least 1")
        check_entry_clip(self.entry_clip, self.kind)

    @property
    def effective_kind(self) -> str:
        """The kind, with ``js`` at α = 0 and 1 resolved to the KL divergence that it then is."""
        if self.kind == "js" and self.alpha in (0.0, 1.0):
            return "reverse_kl" if self.alpha else "forward_kl"
        return self.kind

    @property
    def has_tail(self) -> bool:
        """Whether a top-k support has a bucket for the other tokens."""
        return self.support == "student_topk" if self.tail is None else self.tail


@dataclass(frozen=True)
class Objective:
    """The loss of one token, as a function of its own log-probability and divergence."""

    divergence: DivergenceSettings = field(default_factory=DivergenceSettings)
    surrogate: str = "clipped"
    """``clipped`` (``clipped_surrogate``) or ``importance`` (``importance_surrogate``) of ``ops.policy_gradient``."""
    clip_low: float = 0.2
    """Lower bound of the clipped surrogate's ratio: 1 - clip_low."""
    clip_high: float = 0.28
    """Upper bound of the clipped surrogate's ratio: 1 + clip_high."""
    importance_clip: float | None = None
    """Multiply the divergence by sg min(ρ, importance_clip). ``None``: don't. The importance surrogate has the same limit, or
    2 if this is ``None``."""
    token_clip: float | None = None
    """Largest divergence of a token; no gradient above it. ``None``: no limit."""

    def __post_init__(self) -> None:
        one_of("surrogate", self.surrogate, ("clipped", "importance"))
