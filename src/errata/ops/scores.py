"""Scores and loss of sampled tokens, straight from hidden states and heads; (B, T, V) logits never exist.

``token_scores`` gives the per-token values, differentiable for any later use. ``fused_loss`` is for the training
step: its weights and advantages need no gradient, so a token's loss depends on that token's own scores alone, and the
gradient is formed tile by tile in the forward pass. That takes four matrix products (two logits, dhidden, dhead), none
repeated. ``ops.fused`` is the engine; ``ops.divergence`` is the plain reference of the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import one_of
from .divergence import KINDS, clip_tokens, importance_weight
from .fused.prepare import Call, prepare, require_shape
from .fused.rows import Group, RowScores
from .fused.types import (
    DivergenceSettings,
    Head,
    ModelStates,
    Objective,
    SparseTeacher,
    Streams,
    TokenScores,
)
from .policy_gradient import clipped_surrogate, importance_surrogate

__all__ = [
    "DivergenceSettings",
    "Head",
    "ModelStates",
    "Objective",
    "SparseTeacher",
    "Streams",
    "TokenScores",
    "fused_loss",
    "token_scores",
]

_DEFAULT_OBJECTIVE = Objective()


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
    entry_clip: float | None = None,
    teacher_mask: Tensor | None = None,
    sparse: SparseTeacher | None = None,
) -> TokenScores:
    """Scores of every sampled token in bounded memory.

    ``student_logp`` and ``divergence`` carry gradient to ``student_hidden``, ``student_head`` and ``student_bias``
    (the backward pass computes the logits again); the entropies and the teacher's log-probabilities carry none.

    Args:
        student_hidden: (B, T, H) last hidden states at the positions that predict ``tokens``.
        student_head: (V, H), or a ``Head``.
        teacher_hidden: (B, T, H'), or ``None`` to do without a teacher.
        teacher_head: (V, H') or a ``Head``; may be the student's.
        tokens: (B, T) sampled ids in [0, V); anything where masked.
        divergence, alpha, entry_clip: as ``ops.divergence.divergence``.
        mask: (B, T); masked tokens cost nothing and score exactly 0. ``None``: all count.
        temperature: divides both models' logits.
        student_bias, teacher_bias: (V,) for heads given as tensors. -inf is read as 10⁴ below the largest bias.
        support, k, tail: as ``ops.divergence.topk_divergence``, or ``full``.
        teacher_mask: (B, T) tokens that have a teacher; elsewhere its fields are 0 and cost nothing. ``None``: all.
        sparse: a teacher known by a few tokens of each position. Where its mask is set it replaces ``teacher_hidden``.

    Returns:
        ``TokenScores``, float32 (float64 for float64 inputs).

    Raises:
        ValueError: naming the argument, on shapes that do not agree, tokens outside the vocabulary, or an unknown
        choice.
    """
    one_of("divergence", divergence, KINDS)
    teacher = None
    if teacher_hidden is not None or teacher_head is not None:
        if teacher_hidden is None or teacher_head is None:
            raise ValueError("teacher_head: hidden states without a head (or the reverse); give both or neither")
        teacher = ModelStates(teacher_hidden, _with_bias("teacher", teacher_head, teacher_bias))
    leaves, call = prepare(
        ModelStates(student_hidden, _with_bias("student", student_head, student_bias)),
        teacher,
        tokens,
        mask=mask,
        teacher_mask=teacher_mask,
        settings=DivergenceSettings(divergence, alpha, support, k, tail, entry_clip),
        temperature=temperature,
        sparse=sparse,
    )
    apply: Any = _TokenScores.apply
    return call.spread(RowScores(*apply(*leaves, call)))


def fused_loss(
    student: ModelStates,
    teacher: ModelStates | None,
    tokens: Tensor,
    streams: Streams | Callable[[TokenScores], Streams],
    *,
    mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    sparse: SparseTeacher | None = None,
    old_logp: Tensor | None = None,
    objective: Objective = _DEFAULT_OBJECTIVE,
    temperature: float = 1.0,
) -> tuple[Tensor, TokenScores]:
    """Σ rl_weight·PG + Σ sd_weight·D', with its gradient formed in the forward pass: the loss of a training step.

    PG is the objective's surrogate; D' is its divergence, clipped at ``token_clip`` and multiplied by
    sg min(ρ, importance_clip). Logits are not computed at masked tokens, the teacher's not outside ``teacher_mask``, and
    dhead not if the head is frozen. dhead is summed in float32 whatever the head's type.

    Args:
        student: states (B, T, H) and head; they get the gradient.
        teacher: states (B, T, H') and head, or ``None``.
        tokens: (B, T) sampled ids in [0, V); anything where masked.
        streams: advantage and weights, (B, T); or a function that makes them of the scores. The function is called
            exactly once, without gradient, with the complete scores of all tokens of ``mask``. If the logits of all tokens
            fit in one tile's memory this repeats no product; otherwise all tokens are scored before.
        mask: (B, T). ``None``: the tokens with any weight; all tokens if ``streams`` is a function.
        teacher_mask: (B, T) tokens to score the teacher at; elsewhere ``sd_weight`` counts as 0. ``None``: those with
            ``sd_weight``; all of ``mask`` if ``streams`` is a function.
        sparse: a teacher known by a few tokens of each position. Where its mask is set it replaces ``teacher``.
        old_logp: (B, T) log-probabilities at sampling time. ``None``: the policy has not moved since (ρ = 1).
        objective: surrogate, divergence and clips.
        temperature: divides both models' logits.

    Returns:
        The loss, a scalar with gradient to the student's states, head weight and bias, and the scores without
        gradient. The gradient is held from the forward pass to the first ``backward``, which hands it over; a later one
        (``retain_graph``) computes it anew.

    Raises:
        ValueError: as ``token_scores``; also for a weight without what it weighs.
    """
    require_shape("old_logp", old_logp, tokens.shape)
    given: Streams | None = None
    if isinstance(streams, Streams):
        _check_streams(streams, tokens.shape, teacher is not None or sparse is not None)
        given = streams
        if mask is None:
            weighted = [w != 0 for w in (streams.rl_weight, streams.sd_weight) if w is not None]
            mask = torch.stack(weighted).any(0) if weighted else torch.zeros_like(tokens, dtype=torch.bool)
        if teacher_mask is None:
            teacher_mask = torch.zeros_like(mask) if streams.sd_weight is None else streams.sd_weight != 0
    leaves, call = prepare(
        student,
        teacher,
        tokens,
        mask=mask,
        teacher_mask=teacher_mask,
        settings=objective.divergence,
        temperature=temperature,
        sparse=sparse,
    )

    def decide(rows: RowScores) -> Streams:
        """The streams, decided now if they were not given."""
        nonlocal given
        if given is None:
            assert not isinstance(streams, Streams)
            with torch.no_grad():
                given = streams(call.spread(rows))
            _check_streams(given, tokens.shape, call.has_teacher)
        return given

    needs_gradient = torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves)
    scores_first = given is None and call.fits_at_once(leaves)
    if given is None and needs_gradient and not scores_first:
        decide(call.run(leaves)[0])
    token_loss = _TokenLoss(call, objective, call.gather(old_logp), decide)
    apply: Any = _FusedLoss.apply
    loss, *outputs = apply(*leaves, call, token_loss, needs_gradient, scores_first)
    return loss, call.spread(RowScores(*outputs))


def _with_bias(name: str, head: Tensor | Head, bias: Tensor | None) -> Head:
    if not isinstance(head, Head):
        return Head(head, bias)
    if bias is not None:
        raise ValueError(f"{name}_bias: the Head has a bias of its own; leave this out")
    return head


def _check_streams(streams: Streams, shape: torch.Size, has_teacher: bool) -> None:
    if streams.rl_weight is not None and streams.advantage is None:
        raise ValueError("advantage: rl_weight is given but there is nothing to weight; pass advantages")
    if streams.sd_weight is not None and not has_teacher:
        raise ValueError("teacher: sd_weight is given but there is no teacher; pass its hidden states and head")
    for name, value in streams._asdict().items():
        require_shape(name, value, shape)


class _TokenLoss:
    """The weighted loss of some rows as a function of their own scores."""

    def __init__(
        self, call: Call, objective: Objective, old_logp: Tensor | None, decide: Callable[[RowScores], Streams]
    ) -> None:
        self._call, self._objective, self._old_logp, self._decide = call, objective, old_logp, decide
        self._rows_of: list[Tensor | None] | None = None

    def __call__(self, rows: slice, scores: RowScores, logp: Tensor, value: Tensor | None) -> Tensor:
        """(n,) losses.

        Args:
            scores: of all rows; read only if the streams are not decided yet.
            logp: (n,) the student's.
            value: (n,) divergence; ``None`` without a teacher.
        """
        if self._rows_of is None:
            self._rows_of = [self._call.gather(stream) for stream in self._decide(scores)]
        advantage, rl_weight, sd_weight = self._rows_of
        o = self._objective
        old_logp = logp.detach() if self._old_logp is None else self._old_logp[rows]
        loss = torch.zeros_like(logp)
        if rl_weight is not None and advantage is not None:
            if o.surrogate == "clipped":
                gain = clipped_surrogate(logp, old_logp, advantage[rows], clip_low=o.clip_low, clip_high=o.clip_high)
            else:
                gain = importance_surrogate(logp, old_logp, advantage[rows], clip=o.importance_clip or 2.0)
            loss = loss + rl_weight[rows] * gain
        if sd_weight is not None and value is not None:
            value = clip_tokens(value, o.token_clip)
            if o.importance_clip is not None:
                value = importance_weight(logp, old_logp, clip=o.importance_clip) * value
            loss = loss + sd_weight[rows] * value
        return loss

    def gradients(self, rows: slice, scores: RowScores, has_teacher: bool) -> tuple[Tensor, Tensor | None]:
        """dL/dlogp and dL/ddivergence of some rows."""
        with torch.enable_grad():
            logp = scores.student_logp[rows].clone().requires_grad_()
            value = scores.divergence[rows].clone().requires_grad_() if has_teacher else None
            total = self(rows, scores, logp, value).sum()
            if not total.requires_grad:
                return torch.zeros_like(logp), None if value is None else torch.zeros_like(value)
            if value is None:
                return torch.autograd.grad(total, logp, materialize_grads=True)[0], None
            by_logp, by_value = torch.autograd.grad(total, (logp, value), materialize_grads=True)
            return by_logp, by_value


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
        if by_divergence is None:  # the teacher's logits are not needed again
            call = replace(call, groups=(Group(call.tokens.shape[0], None),))

        def token_gradients(rows: slice, scores: RowScores, has_teacher: bool) -> tuple[Tensor, Tensor | None]:
            first = torch.zeros_like(scores.student_logp[rows]) if by_logp is None else by_logp[rows]
            return first, by_divergence[rows] if has_teacher and by_divergence is not None else None

        _, gradients = call.run(leaves, token_gradients, ctx.needs_input_grad[:3])
        return *(_like(g, leaf) for g, leaf in zip(gradients, leaves, strict=True)), None


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        call: Call,
        token_loss: _TokenLoss,
        needs_gradient: bool,
        scores_first: bool,
    ) -> tuple[Tensor, ...]:
        leaves = (hidden, weight, bias)
        needs = tuple(needs_gradient and need for need in ctx.needs_input_grad[:3])
        scores, ctx.held = call.run(leaves, token_loss.gradients, needs, scores_first=scores_first)
        ctx.compute_again = lambda saved: call.run(saved, token_loss.gradients, needs)[1]
        ctx.save_for_backward(*leaves)
        ctx.dtypes = [None if leaf is None else leaf.dtype for leaf in leaves]
        ctx.mark_non_differentiable(*scores)
        loss, last = scores.student_logp.new_zeros(()), 0
        for group in call.groups:
            rows, last = slice(last, last + group.n_rows), last + group.n_rows
            value = None if group.teacher is None else scores.divergence[rows]
            loss = loss + token_loss(rows, scores, scores.student_logp[rows], value).sum()
        return loss, *scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        held, ctx.held = ctx.held, None
        if held is None:
            held = ctx.compute_again(ctx.saved_tensors)
        # In place, and without keeping it: dhead is the largest tensor here and autograd may make it .grad without a copy.
        if by_loss.device.type != "cpu" or by_loss != 1.0:  # reading its value would wait for a GPU
            held = [None if g is None else g.mul_(by_loss) for g in held]
        scaled = [None if g is None else g.to(dtype) for g, dtype in zip(held, ctx.dtypes, strict=True)]
        del held
        return *scaled, None, None, None, None


def _like(gradient: Tensor | None, leaf: Tensor | None) -> Tensor | None:
    return None if gradient is None or leaf is None else gradient.to(leaf.dtype)
