"""Divergences between teacher and student next-token distributions: the plain, readable reference.

Everything here takes logits (..., V) and returns (...). ``ops.scores`` computes the same numbers from hidden states
without ever holding (B, T, V); this file is what it is tested against.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .checks import as_float, one_of, same_shape

Kind = Literal["forward_ce", "forward_kl", "reverse_kl", "js"]
Support = Literal["full", "student_topk", "teacher_topk"]
KINDS: tuple[str, ...] = ("forward_ce", "forward_kl", "reverse_kl", "js")

FLOOR = 1e4
"""Logits further than this below their row's largest are raised to there. Their probability is 0 either way (in
float64 too), but 0·log 0 becomes 0·(-10⁴) = 0 instead of NaN, and a model that forbids a token (-inf) which the other
one allows costs a large finite price instead of an infinite one."""


def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    kind: str = "forward_ce",
    *,
    alpha: float = 0.5,
    entry_clip: float | None = None,
) -> Tensor:
    """Divergence per token over the whole vocabulary, in nats. Gradient flows to the student only.

    With p_S, p_T the two softmaxes and M = (1-α)·p_S + α·p_T:

    ==============  ============================================================
    ``forward_ce``  -Σ p_T log p_S                          (DistIL, eq. of L(θ))
    ``forward_kl``  KL(p_T ‖ p_S) = forward_ce - entropy of the teacher
    ``reverse_kl``  KL(p_S ‖ p_T)
    ``js``          α·KL(p_T ‖ M) + (1-α)·KL(p_S ‖ M); α=0 means forward KL and α=1 reverse KL (SDPO's convention)
    ==============  ============================================================

    Args:
        student_logits, teacher_logits: (..., V), any float type; -inf forbids a token.
        kind: one of the above.
        alpha: the teacher's share in the mixture, in [0, 1]; used by ``js`` alone.
        entry_clip: c; every vocabulary entry's term is replaced by min(term, c) before the sum (OPSD's released code).
            A term is p_T·log(p_T/p_S) for ``forward_kl``, p_S·log(p_S/p_T) for ``reverse_kl`` and
            α·p_T·log(p_T/M) + (1-α)·p_S·log(p_S/M) for ``js``. A clipped term has no gradient. Terms below 0 stay, so the
            clipped sum can be negative. ``None``: no limit.

    Returns:
        (...), float32 (float64 for float64 logits).

    Raises:
        ValueError: on differing shapes, an unknown ``kind``, ``alpha`` outside [0, 1], or ``entry_clip`` that is not
            positive or comes with ``forward_ce``.
    """
    same_shape("student_logits", student_logits, teacher_logits=teacher_logits)
    student, teacher = log_softmax(student_logits), log_softmax(teacher_logits.detach())
    return between(student, teacher, kind, alpha=alpha, entry_clip=entry_clip)


def topk_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    kind: str = "forward_ce",
    *,
    alpha: float = 0.5,
    support: str = "student_topk",
    k: int = 100,
    tail: bool | None = None,
    entry_clip: float | None = None,
) -> Tensor:
    """The divergence over the ``k`` likeliest tokens of one of the two, as the released implementations approximate it.

    Both distributions are restricted to those tokens; the mass outside becomes one further bucket (``tail=True``) or
    is dropped and the rest renormalised (``tail=False``). SDPO and DistIL's science and coding runs use
    ``student_topk`` with the tail (k = 100 and 20), OPSD and DistIL's mathematics ``teacher_topk`` renormalised (k =
    100): the defaults of ``tail``. ``k`` at or above V is the whole vocabulary, exactly. ``entry_clip`` limits the term
    of each of the k tokens and of the bucket.

    Returns:
        (...), float32; gradient to the student only (the choice of tokens carries none).

    Raises:
        ValueError: as ``divergence``, and for an unknown ``support`` or ``k`` below 1.
    """
    same_shape("student_logits", student_logits, teacher_logits=teacher_logits)
    one_of("support", support, ("student_topk", "teacher_topk"))
    if k < 1:
        raise ValueError(f"k: {k} tokens of support; give at least 1")
    student, teacher = log_softmax(student_logits), log_softmax(teacher_logits.detach())
    if k >= student.shape[-1]:
        return between(student, teacher, kind, alpha=alpha, entry_clip=entry_clip)
    chosen = (student if support == "student_topk" else teacher).detach().topk(k, dim=-1).indices
    close = add_tail if (support == "student_topk" if tail is None else tail) else renormalise
    student, teacher = close(student.gather(-1, chosen)), close(teacher.gather(-1, chosen))
    return between(student, teacher, kind, alpha=alpha, entry_clip=entry_clip)


def between(
    student: Tensor, teacher: Tensor, kind: str, *, alpha: float = 0.5, entry_clip: float | None = None
) -> Tensor:
    """``divergence`` of two tensors of finite log-probabilities (..., V)."""
    one_of("kind", kind, KINDS)
    check_entry_clip(entry_clip, kind)
    if kind == "js":
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha: {alpha} is not in [0, 1]")
        kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(float(alpha), "js")
    if kind == "forward_ce":
        terms = -teacher.exp() * student
    elif kind == "forward_kl":
        terms = _kl_terms(teacher, student)
    elif kind == "reverse_kl":
        terms = _kl_terms(student, teacher)
    else:
        mixture = torch.logaddexp(student + math.log1p(-alpha), teacher + math.log(alpha))
        by_teacher, by_student = _kl_terms(teacher, mixture), _kl_terms(student, mixture)
        if entry_clip is None:  # scaling two sums is cheaper than scaling their terms
            return alpha * by_teacher.sum(-1) + (1.0 - alpha) * by_student.sum(-1)
        terms = alpha * by_teacher + (1.0 - alpha) * by_student
    return (terms if entry_clip is None else terms.clamp(max=entry_clip)).sum(-1)


def check_entry_clip(entry_clip: float | None, kind: str) -> None:
    """Raise ``ValueError`` for a per-entry clip that is not positive, or that would not measure agreement."""
    if entry_clip is None:
        return
    if not entry_clip > 0:
        raise ValueError(f"entry_clip: {entry_clip} must be positive; leave it out for no limit")
    if kind == "forward_ce":
        raise ValueError(
            "entry_clip: a term of forward_ce is positive even where both models agree, so a limit would cut agreement "
            "too; use forward_kl, whose gradient is the same"
        )


def log_softmax(logits: Tensor) -> Tensor:
    """Finite log-probabilities in at least float32; see ``FLOOR``."""
    logits = as_float(logits)
    return torch.maximum(logits, logits.detach().amax(-1, keepdim=True) - FLOOR).log_softmax(-1)


def add_tail(logp: Tensor) -> Tensor:
    """Append the log of the mass that log-probabilities (..., k) leave over: (..., k+1), a distribution again."""
    held = logp.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([logp, torch.log(-torch.expm1(held))], dim=-1)


def renormalise(logp: Tensor) -> Tensor:
    """Log-probabilities (..., k) scaled to sum to 1."""
    return logp.log_softmax(-1)


def clip_tokens(value: Tensor, clip: float | None) -> Tensor:
    """OPSD's per-token clip: min(value, clip), and no gradient where the clip binds. ``None``: unchanged."""
    return value if clip is None else value.clamp(max=clip)


def importance_weight(logp: Tensor, old_logp: Tensor, *, clip: float = 2.0) -> Tensor:
    """sg min(ρ, clip) with ρ = exp(logp - old_logp): SDPO's one-sided importance clip, without gradient. Shapes
    agree; (B, T)."""
    same_shape("logp", logp, old_logp=old_logp)
    # e^±20 is past any clip in use and keeps stale or broken log-probabilities from overflowing.
    return (as_float(logp) - as_float(old_logp)).detach().clamp(-20.0, 20.0).exp().clamp(max=clip)


def _kl_terms(p: Tensor, q: Tensor) -> Tensor:
    return p.exp() * (p - q)
