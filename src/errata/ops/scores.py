"""Everything a method needs to know of a token, straight from hidden states and heads; (B, T, V) is never held.

``token_scores`` gives the per-token values, differentiable for any later use. ``fused_loss`` is for the training
step: weights, advantages and credits are decided before and need no gradient, so a token's loss depends on that
token's own scores alone, and the gradient is formed tile by tile in the forward pass: four matrix products (two
logits, dhidden, dhead), none repeated. ``ops.tiles`` does the work; ``ops.divergence`` is the plain reference of the
same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import one_of
from .divergence import clip_tokens, importance_weight
from .fused.engine import RowScores
from .fused.prepare import Call, Head, SparseTeacher, TokenScores, agree, measure_of, prepare
from .policy_gradient import clipped_surrogate, importance_surrogate

__all__ = ["Head", "SparseTeacher", "TokenScores", "fused_loss", "token_scores"]


def token_scores(
    student_hidden: Tensor,
    student_head: Tensor | Head,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | Head | None,
    tokens: Tensor,
    *,
    divergence: str = "forward_ce",
    alpha: float = 0.5,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    support: str = "full",
    k: int = 100,
    tail: bool | None = None,
    teacher_mask: Tensor | None = None,
    sparse: SparseTeacher | None = None,
) -> TokenScores:
    """Scores of every sampled token in bounded memory.

    ``student_logp`` and ``divergence`` carry gradient to ``student_hidden``, ``student_head`` and ``student_bias``
    (the backward pass computes the logits again); the entropies and everything of the teacher's carry none.

    Args:
        student_hidden: (B, T, H) last hidden states at the positions that predict ``tokens``.
        student_head: (V, H), or a ``Head``.
        teacher_hidden: (B, T, H'), or ``None`` to do without a teacher.
        teacher_head: (V, H') or a ``Head``; may be the student's.
        tokens: (B, T) sampled ids in [0, V); anything where masked.
        divergence, alpha: as ``ops.divergence.divergence``.
        mask: (B, T); masked tokens cost nothing and score exactly 0. ``None``: all count.
        temperature: divides both models' logits.
        student_bias, teacher_bias: (V,) for heads given as tensors. -inf is read as 10⁴ below the largest bias.
        support, k, tail: as ``ops.divergence.topk_divergence``, or ``full``.
        teacher_mask: (B, T) tokens that have a teacher; elsewhere its fields are 0 and cost nothing. ``None``: all.
        sparse: a teacher known by some tokens alone; where its mask is set it takes ``teacher_hidden``'s place.

    Returns:
        ``TokenScores``, float32 (float64 for float64 inputs).

    Raises:
        ValueError: naming the argument, on shapes that do not agree, tokens outside the vocabulary, or an unknown
        choice.
    """
    leaves, call = prepare(
        ("student", student_hidden, student_head, student_bias),
        ("teacher", teacher_hidden, teacher_head, teacher_bias),
        tokens,
        mask,
        teacher_mask,
        measure_of(divergence, alpha, support, k, tail),
        temperature,
        sparse,
    )
    apply: Any = _TokenScores.apply
    return call.spread(RowScores(*apply(*leaves, call)))


Decide = Callable[[TokenScores], tuple[Tensor, Tensor, Tensor]]
"""Scores known so far → advantage, weights of the two streams, each (B, T)."""


def fused_loss(
    student_hidden: Tensor,
    student_head: Tensor | Head,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | Head | None,
    tokens: Tensor,
    *,
    advantage: Tensor | None = None,
    rl_weight: Tensor | None = None,
    sd_weight: Tensor | None = None,
    old_logp: Tensor | None = None,
    mask: Tensor | None = None,
    divergence: str = "forward_ce",
    alpha: float = 0.5,
    support: str = "full",
    k: int = 100,
    tail: bool | None = None,
    surrogate: str = "clipped",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    importance_clip: float | None = None,
    token_clip: float | None = None,
    temperature: float = 1.0,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    sparse: SparseTeacher | None = None,
    decide: Decide | None = None,
) -> tuple[Tensor, TokenScores]:
    """Σ rl_weight·PG + Σ sd_weight·D', with its gradient formed on the way: what the training step calls.

    PG is ``clipped_surrogate`` or ``importance_surrogate`` of ``ops.policy_gradient``; D' is the divergence, clipped at
    ``token_clip`` and multiplied by sg min(ρ, importance_clip). The weights contain their denominators
    (``ops.reduce``). Logits of masked tokens are not computed, nor the teacher's outside ``teacher_mask``, nor dhead if
    the head is frozen. dhead is summed in float32 whatever the head's type.

    Args:
        advantage: (B, T) or (B,); needed with ``rl_weight``.
        rl_weight, sd_weight: (B, T) weights of the two streams; ``None`` is 0 everywhere.
        old_logp: (B, T) log-probabilities at sampling time; ``None``: the policy has not moved since (ρ = 1).
        mask: (B, T); ``None``: the tokens with any weight.
        surrogate: ``clipped`` (with ``clip_low``, ``clip_high``) or ``importance`` (ρ cut at ``importance_clip``, else 2).
        importance_clip: ``None`` leaves the divergence as it is.
        token_clip: largest divergence of a token; ``None``: no limit.
        teacher_mask: (B, T) tokens to score the teacher at; elsewhere ``sd_weight`` counts as 0. ``None``: those with
            ``sd_weight``.
        sparse: a teacher known by some tokens alone; where its mask is set it takes ``teacher_hidden``'s place.
        decide: gives (advantage, rl_weight, sd_weight), (B, T) each, of the scores known so far, in place of these three
            arguments: for credit that a token gets from *later* tokens. Responses are then walked through from their
            ends, so that no token is scored twice. What it gives a token must depend on the scores of that token and of
            later ones alone, in any response; earlier ones are still 0. With ``decide``, ``mask`` is needed, and one
            kind of teacher only.

        The others as ``token_scores``.

    Returns:
        The loss, a scalar with gradient to ``student_hidden``, ``student_head`` and ``student_bias``, and the scores
        without gradient. The gradient is held from the forward pass to the first ``backward``, which hands it over; a
        later one (``retain_graph``) computes it anew.

    Raises:
        ValueError: as ``token_scores``; also for weights without what they weigh.
    """
    one_of("surrogate", surrogate, ("clipped", "importance"))
    if rl_weight is not None and advantage is None:
        raise ValueError("advantage: rl_weight is given but there is nothing to weigh; pass advantages")
    if sd_weight is not None and teacher_hidden is None and sparse is None:
        raise ValueError("teacher_hidden: sd_weight is given but there is no teacher; pass its hidden states and head")
    if decide is not None and mask is None:
        raise ValueError("mask: needed with decide, which learns the weights only on the way")
    if decide is not None and sparse is not None and teacher_hidden is not None:
        raise ValueError("sparse: decide cannot walk through two kinds of teacher at once; give one of them")
    for name, value in {"rl_weight": rl_weight, "sd_weight": sd_weight, "old_logp": old_logp}.items():
        agree(name, value, tokens.shape)
    if advantage is not None and advantage.shape == tokens.shape[:-1]:
        advantage = advantage.unsqueeze(-1).expand(tokens.shape)
    agree("advantage", advantage, tokens.shape)
    if mask is None:
        weighed = [w != 0 for w in (rl_weight, sd_weight) if w is not None]
        mask = torch.stack(weighed).any(0) if weighed else torch.zeros_like(tokens, dtype=torch.bool)
    if teacher_mask is None:
        teacher_mask = mask if decide else torch.zeros_like(tokens) if sd_weight is None else sd_weight != 0
    leaves, call = prepare(
        ("student", student_hidden, student_head, student_bias),
        ("teacher", teacher_hidden, teacher_head, teacher_bias),
        tokens,
        mask,
        teacher_mask,
        measure_of(divergence, alpha, support, k, tail),
        temperature,
        sparse,
        from_the_end=decide is not None,
    )
    old, decided = call.gather(old_logp), [call.gather(x) for x in (advantage, rl_weight, sd_weight)]

    def objective(rows: slice, so_far: RowScores | None, logp: Tensor, value: Tensor | None) -> Tensor:
        """The weighted loss of some tokens, (n,), as a function of their own scores."""
        if decide is not None and so_far is not None:
            with torch.no_grad():
                decided[:] = [call.gather(x) for x in decide(call.spread(so_far))]
        a, w_rl, w_sd = decided
        before = logp.detach() if old is None else old[rows]
        loss = torch.zeros_like(logp)
        if w_rl is not None and a is not None:
            if surrogate == "clipped":
                gain = clipped_surrogate(logp, before, a[rows], clip_low=clip_low, clip_high=clip_high)
            else:
                gain = importance_surrogate(logp, before, a[rows], clip=importance_clip or 2.0)
            loss = loss + w_rl[rows] * gain
        if w_sd is not None and value is not None:
            value = clip_tokens(value, token_clip)
            if importance_clip is not None:
                value = importance_weight(logp, before, clip=importance_clip) * value
            loss = loss + w_sd[rows] * value
        return loss

    apply: Any = _FusedLoss.apply
    loss, *outputs = apply(*leaves, call, objective, torch.is_grad_enabled())
    return loss, call.spread(RowScores(*outputs))


Objective = Callable[[slice, RowScores | None, Tensor, Tensor | None], Tensor]
"""(tokens, all scores so far if they are news, logp, divergence) → their loss."""


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> tuple[Tensor, ...]:
        scores, _ = call.run((hidden, weight, bias))
        ctx.save_for_backward(hidden, weight, bias)
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(scores.teacher_logp, scores.student_entropy, scores.teacher_entropy)
        return tuple(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logp: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        by_divergence, call, leaves = others[-1], ctx.call, ctx.saved_tensors
        if by_divergence is None:  # the teacher's logits are not wanted again
            call = replace(call, teachers=((call.tokens.shape[0], None),))

        def slopes(rows: slice, scores: RowScores, marked: bool) -> tuple[Tensor, Tensor | None]:
            first = torch.zeros_like(scores.student_logp[rows]) if by_logp is None else by_logp[rows]
            return first, by_divergence[rows] if marked and by_divergence is not None else None

        _, gradients = call.run(leaves, slopes, ctx.needs_input_grad[:3])
        return *(_like(g, leaf) for g, leaf in zip(gradients, leaves, strict=True)), None


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Call,
        objective: Objective,
        grad_enabled: bool,
    ) -> tuple[Tensor, ...]:
        news = True

        def slopes(rows: slice, scores: RowScores, marked: bool) -> tuple[Tensor, Tensor | None]:
            with torch.enable_grad():
                logp = scores.student_logp[rows].clone().requires_grad_()
                value = scores.divergence[rows].clone().requires_grad_() if marked else None
                total = objective(rows, scores if news else None, logp, value).sum()
                if not total.requires_grad:
                    return torch.zeros_like(logp), None if value is None else torch.zeros_like(value)
                if value is None:
                    return torch.autograd.grad(total, logp, materialize_grads=True)[0], None
                by_logp, by_value = torch.autograd.grad(total, (logp, value), materialize_grads=True)
                return by_logp, by_value

        leaves = (hidden, weight, bias)
        needs = tuple(grad_enabled and need for need in ctx.needs_input_grad[:3])
        scores, ctx.held = call.run(leaves, slopes, needs)
        ctx.again = lambda saved: call.run(saved, slopes, needs)[1]
        ctx.save_for_backward(*leaves)
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in leaves]
        ctx.mark_non_differentiable(*scores)
        loss, last = scores.student_logp.new_zeros(()), 0
        for count, by in call.teachers:
            rows, last = slice(last, last + count), last + count
            value = None if by is None else scores.divergence[rows]
            loss = loss + objective(rows, scores, scores.student_logp[rows], value).sum()
        news = False  # whatever a later backward asks again is decided
        return loss, *scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        held, ctx.held = ctx.held, None
        if held is None:
            held = ctx.again(ctx.saved_tensors)
        # In place, and let go of: dhead is the largest tensor here and autograd may keep it as .grad without a copy.
        if by_loss.device.type != "cpu" or by_loss != 1.0:  # to look at it, a GPU's would have to be waited for
            held = [None if g is None else g.mul_(by_loss) for g in held]
        scaled = [None if g is None else g.to(dtype) for g, dtype in zip(held, ctx.dtypes, strict=True)]
        del held
        return *scaled, None, None, None


def _like(gradient: Tensor | None, leaf: Tensor | None) -> Tensor | None:
    return None if gradient is None or leaf is None else gradient.to(leaf.dtype)
