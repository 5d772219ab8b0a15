"""The oracle's scores of one token, from two distributions over the vocabulary. Gradient flows to the student's alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Known:
    """A teacher's distribution at one state."""

    logp: Tensor
    """(V,) log-probabilities."""
    likeliest: int = 0
    """Only so many are known; 0: all."""


@dataclass
class Score:
    """What a method reads of one token, plain numbers."""

    student_logp: float
    teacher_logp: float
    student_entropy: float
    teacher_entropy: float
    divergence: float


def entropy(logp: Tensor) -> Tensor:
    return -(logp.exp() * logp).sum()


def divergence(student: Tensor, teacher: Known, s: dict[str, Any]) -> Tensor:
    """Between two distributions given as log-probabilities (V,), as the method's settings ``s`` say."""
    p, q = _on_support(student, teacher, s)
    kind, alpha = s["divergence"], s["alpha"]
    if kind == "js" and alpha == 0.0:
        kind = "forward_kl"
    if kind == "js" and alpha == 1.0:
        kind = "reverse_kl"
    if kind == "forward_ce":
        terms = -q.exp() * p
    elif kind == "forward_kl":
        terms = q.exp() * (q - p)
    elif kind == "reverse_kl":
        terms = p.exp() * (p - q)
    else:
        mixture = ((1 - alpha) * p.exp() + alpha * q.exp()).log()
        terms = alpha * q.exp() * (q - mixture) + (1 - alpha) * p.exp() * (p - mixture)
    if s["entry_clip"] is not None:
        terms = torch.stack([t if t < s["entry_clip"] else t.new_tensor(s["entry_clip"]) for t in terms])
    return terms.sum()


def _on_support(student: Tensor, teacher: Known, s: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Both on the tokens that are compared, with or without a bucket for the others."""
    if teacher.likeliest:
        return _with_rest(student, teacher.logp, teacher.logp.topk(teacher.likeliest).indices)
    if s["support"] == "full" or s["top_k"] >= len(student):
        return student, teacher.logp
    if s["support"] == "student_topk":
        return _with_rest(student, teacher.logp, student.detach().topk(s["top_k"]).indices)
    chosen = teacher.logp.topk(s["top_k"]).indices
    return student[chosen].log_softmax(0), teacher.logp[chosen].log_softmax(0)


def _with_rest(student: Tensor, teacher: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    others = torch.ones_like(student, dtype=torch.bool)
    others[chosen] = False
    p, q = (torch.cat([x[chosen], x[others].exp().sum().log()[None]]) for x in (student, teacher))
    return p, q


def score(student: Tensor, teacher: Known | None, token: int, s: dict[str, Any]) -> Score:
    """Of a token that was written, without gradient."""
    student = student.detach()
    nothing = math.nan
    if teacher is None:
        return Score(float(student[token]), nothing, float(entropy(student)), nothing, nothing)
    its_logp, its_entropy = float(teacher.logp[token]), float(entropy(teacher.logp))
    if teacher.likeliest:
        chosen = teacher.logp.topk(teacher.likeliest).indices
        its_entropy = float(entropy(_with_rest(student, teacher.logp, chosen)[1]))
    return Score(
        float(student[token]), its_logp, float(entropy(student)), its_entropy, float(divergence(student, teacher, s))
    )


def distilled(student: Tensor, teacher: Known, token: int, old: float, s: dict[str, Any]) -> Tensor:
    """The distillation term of one token."""
    value = divergence(student, teacher, s)
    if s["token_clip"] is not None and float(value.detach()) > s["token_clip"]:
        value = value.new_tensor(s["token_clip"])
    if s["importance_clip"] is not None:
        value = min(math.exp(float(student[token].detach()) - old), s["importance_clip"]) * value
    return value


def reinforced(student: Tensor, advantage: float, token: int, old: float, s: dict[str, Any]) -> Tensor:
    """The policy-gradient term of one token. ``s``: surrogate, importance_clip, epsilon, epsilon_high."""
    logp = student[token]
    if s["surrogate"] == "importance":
        limit = 2.0 if s["importance_clip"] is None else s["importance_clip"]
        return -min(math.exp(float(logp.detach()) - old), limit) * advantage * logp
    ratio = (logp - old).exp()
    low, high = 1 - s["epsilon"], 1 + s["epsilon_high"]
    if advantage > 0 and float(ratio.detach()) > high:
        return logp * 0 - high * advantage
    if advantage < 0 and float(ratio.detach()) < low:
        return logp * 0 - low * advantage
    return -ratio * advantage
