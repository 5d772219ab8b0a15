"""Everything a method needs to know of a token, straight from hidden states and heads; (B, T, V) is never held.

``token_scores`` gives the per-token values, differentiable for any later use. ``fused_loss`` is for the training
step: weights, advantages and credits are decided before and need no gradient, so a token's loss depends on that
token's own scores alone, and the gradient is formed tile by tile in the forward pass: four matrix products (two
logits, dhidden, dhead), none repeated. ``ops.tiles`` does the work; ``ops.divergence`` is the plain reference of the
same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import as_float, one_of
from .divergence import FLOOR, KINDS, clip_tokens, importance_weight
from .policy_gradient import clipped_surrogate, importance_surrogate
from .tiles import Gradients, Measure, Named, RowScores, Side, Slopes, Teachers, accumulation_dtype, sweep


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


@dataclass(frozen=True)
class Head:
    """An output head as the Hugging Face models have them: logits = softcap·tanh(scale·(W h + b) / softcap).

    ``Head(model.lm_head.weight, softcap=model.config.final_logit_softcapping)``
    """

    weight: Tensor
    """(V, H); a sharded (DTensor) one is gathered."""
    bias: Tensor | None = None
    """(V,); -inf forbids a token."""
    scale: float = 1.0
    """Cohere's ``logit_scale``; one over Granite's ``logits_scaling``."""
    softcap: float | None = None
    """Gemma's ``final_logit_softcapping``."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., H) → (..., V) in float32, without gradient to the head: for a few states at a time."""
        weight, bias = self.weight.detach().float(), None if self.bias is None else self.bias.detach().float()
        logits = torch.nn.functional.linear(hidden.float(), weight, bias) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class SparseTeacher(NamedTuple):
    """A teacher known at some states by some tokens alone: a server's top-k log-probabilities, or a black box's samples.

    ``SparseTeacher(samples, torch.full(samples.shape, -math.log(n)), asked, tail=False)`` makes forward cross-entropy
    -mean log π_S(a'), an unbiased estimate of the exact one for samples a' of the teacher (METHODS section 7).
    """

    tokens: Tensor
    """(B, T, K) ids in [0, V); anything where ``logp`` is -inf."""
    logp: Tensor
    """(B, T, K) log-weights of these tokens; -inf where a state has fewer."""
    mask: Tensor
    """(B, T) the states it is known at."""
    tail: bool
    """True: the rest of the weights is one further bucket, all other tokens of either model. False: there is no rest, the
    student's log-probabilities stay as they are, and teacher_logp and teacher_entropy are not known (0)."""


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
    leaves, call = _prepare(
        ("student", student_hidden, student_head, student_bias),
        ("teacher", teacher_hidden, teacher_head, teacher_bias),
        tokens,
        mask,
        teacher_mask,
        _measure(divergence, alpha, support, k, tail),
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
        _agree(name, value, tokens.shape)
    if advantage is not None and advantage.shape == tokens.shape[:-1]:
        advantage = advantage.unsqueeze(-1).expand(tokens.shape)
    _agree("advantage", advantage, tokens.shape)
    if mask is None:
        weighed = [w != 0 for w in (rl_weight, sd_weight) if w is not None]
        mask = torch.stack(weighed).any(0) if weighed else torch.zeros_like(tokens, dtype=torch.bool)
    if teacher_mask is None:
        teacher_mask = mask if decide else torch.zeros_like(tokens) if sd_weight is None else sd_weight != 0
    leaves, call = _prepare(
        ("student", student_hidden, student_head, student_bias),
        ("teacher", teacher_hidden, teacher_head, teacher_bias),
        tokens,
        mask,
        teacher_mask,
        _measure(divergence, alpha, support, k, tail),
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
_Leaves = tuple[Tensor, Tensor, Tensor | None]
_End = tuple[str, Tensor | None, Tensor | Head | None, Tensor | None]


@dataclass(frozen=True)
class _Call:
    """What one call knows besides the differentiable tensors. Tokens are rows: those with a teacher first."""

    head: Head
    """The student's, for its scale and softcap."""
    dtype: torch.dtype
    teachers: Teachers
    tokens: Tensor
    where: Tensor
    """Each row's place in the flattened (B, T)."""
    shape: torch.Size
    measure: Measure
    temperature: float

    @property
    def taught(self) -> bool:
        """Whether any teacher was asked."""
        return any(by is not None for _, by in self.teachers)

    def gather(self, value: Tensor | None) -> Tensor | None:
        """(B, T) → rows."""
        return None if value is None else as_float(value.detach()).flatten()[self.where]

    def spread(self, rows: RowScores) -> TokenScores:
        """Rows → (B, T), 0 elsewhere."""
        logp, teacher_logp, entropy, teacher_entropy, divergence = (
            row.new_zeros(self.shape.numel()).index_put((self.where,), row).view(self.shape) for row in rows
        )
        if not self.taught:
            return TokenScores(logp, None, entropy, None, None)
        return TokenScores(logp, teacher_logp, entropy, teacher_entropy, divergence)

    def run(
        self, leaves: _Leaves, slopes: Slopes | None = None, needs: tuple[bool, ...] = (False, False, False)
    ) -> tuple[RowScores, list[Tensor | None]]:
        """The scores, and the gradients of ``leaves`` where needed."""
        acc = accumulation_dtype(leaves[0], leaves[1])
        totals = [
            torch.zeros_like(leaf, dtype=acc) if need and leaf is not None else None
            for need, leaf in zip(needs, leaves, strict=True)
        ]
        hidden, weight, bias = leaves
        student = Side(hidden, weight, bias, self.head.scale, self.head.softcap, self.temperature, self.dtype)
        gradients = Gradients(*totals) if any(total is not None for total in totals) else None
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            scores = sweep(student, self.teachers, self.tokens, self.measure, slopes, gradients)
        return scores, totals


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> tuple[Tensor, ...]:
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
        call: _Call,
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
        scaled = [None if g is None else g.mul_(by_loss).to(dtype) for g, dtype in zip(held, ctx.dtypes, strict=True)]
        del held
        return *scaled, None, None, None


def _prepare(
    student: _End,
    teacher: _End,
    tokens: Tensor,
    mask: Tensor | None,
    teacher_mask: Tensor | None,
    measure: Measure,
    temperature: float,
    sparse: SparseTeacher | None = None,
    from_the_end: bool = False,
) -> tuple[_Leaves, _Call]:
    """Check everything, and gather the valid tokens' rows, the last of each response first if ``from_the_end``."""
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} must be positive")
    _agree("mask", mask, tokens.shape)
    _agree("teacher_mask", teacher_mask, tokens.shape)
    hidden, head = _checked(student, tokens.shape)
    vocabulary = head.weight.shape[0]
    keep = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    named = torch.zeros_like(keep)
    if sparse is not None:
        _check_sparse(sparse, tokens.shape, measure)
        named = keep & sparse.mask.bool()
    shared = torch.zeros_like(keep)
    if teacher[1] is not None:
        shared = (keep if teacher_mask is None else keep & teacher_mask.bool()) & ~named
    # The numbers of rows are all the host waits for.
    rows, named_rows, alone = (_rows(part, keep, from_the_end) for part in (shared, named, keep & ~shared & ~named))
    where = torch.cat([rows, named_rows, alone])
    ids = tokens.flatten()[where]
    if bool(((ids < 0) | (ids >= vocabulary)).any()):
        raise ValueError(f"tokens: an id outside the vocabulary of {vocabulary}; mask such tokens")
    teachers: list[tuple[int, Side | Named | None]] = []
    if teacher[1] is not None:
        teacher_hidden, teacher_head = _checked(teacher, tokens.shape)
        if teacher_head.weight.shape[0] != vocabulary:
            raise ValueError(
                f"teacher_head: {teacher_head.weight.shape[0]} rows where student_head has {vocabulary}; "
                "cut both to the tokens they share, or pad one with rows of bias -inf"
            )
        side = Side(
            teacher_hidden.detach().flatten(0, -2)[rows],
            teacher_head.weight.detach(),
            None if teacher_head.bias is None else teacher_head.bias.detach(),
            teacher_head.scale,
            teacher_head.softcap,
            temperature,
            _operand_dtype(teacher_hidden, teacher_head.weight),
        )
        teachers.append((rows.shape[0], side))
    if sparse is not None:
        ids_named, logp = (x.detach().flatten(0, -2)[named_rows] for x in (sparse.tokens, sparse.logp))
        by_name = Named(ids_named, logp, sparse.tail)
        if bool(((by_name.tokens < 0) | (by_name.tokens >= vocabulary))[by_name.logp > -torch.inf].any()):
            raise ValueError(
                f"sparse: its tokens hold an id outside the vocabulary of {vocabulary}; give it the weight -inf"
            )
        teachers.append((named_rows.shape[0], by_name))
    call = _Call(
        replace(head, weight=head.weight.detach(), bias=None),
        _operand_dtype(hidden, head.weight),
        (*teachers, (alone.shape[0], None)),
        ids,
        where,
        tokens.shape,
        measure,
        temperature,
    )
    return (hidden.flatten(0, -2)[where], head.weight, head.bias), call


def _rows(part: Tensor, keep: Tensor, from_the_end: bool) -> Tensor:
    """Places of ``part`` in the flattened (B, T); latest positions among each response's valid tokens first, if asked."""
    places = part.flatten().nonzero().squeeze(1)
    if not from_the_end:
        return places
    position = keep.cumsum(-1).flatten()[places]
    return places[position.argsort(descending=True, stable=True)]


def _check_sparse(sparse: SparseTeacher, shape: torch.Size, measure: Measure) -> None:
    _agree("sparse", sparse.mask, shape)
    if sparse.tokens.shape[:-1] != shape or sparse.tokens.shape != sparse.logp.shape:
        raise ValueError(
            f"sparse: tokens {tuple(sparse.tokens.shape)} and logp {tuple(sparse.logp.shape)} must both be {(*shape, 'K')}"
        )
    if not sparse.tail and measure.kind != "forward_ce":
        raise ValueError(
            f"divergence: {measure.kind} needs the teacher's probabilities; of samples only forward_ce can be had"
        )


def _checked(end: _End, shape: torch.Size) -> tuple[Tensor, Head]:
    """One model's hidden states and head: whole, of agreeing shapes, its bias finite."""
    name, hidden, head, bias = end
    if hidden is None or head is None:
        raise ValueError(f"{name}_head: hidden states without a head (or the reverse); give both or neither")
    if not isinstance(head, Head):
        head = Head(head, bias)
    elif bias is not None:
        raise ValueError(f"{name}_bias: the Head given has its own; leave this out")
    weight = _whole(head.weight)
    if weight.dim() != 2:
        raise ValueError(f"{name}_head: expected shape (V, H), got {tuple(weight.shape)}")
    if hidden.shape != (*shape, weight.shape[1]):
        raise ValueError(
            f"{name}_hidden: shape {tuple(hidden.shape)}; tokens and {name}_head ask for {(*shape, weight.shape[1])}"
        )
    if head.bias is None:
        return hidden, replace(head, weight=weight)
    bias = _whole(head.bias)
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}_bias: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    return hidden, replace(head, weight=weight, bias=bias.clamp(min=bias.detach().max() - FLOOR))


def _whole(parameter: Any) -> Tensor:
    """A parameter, gathered if it is sharded. Its gradient is then averaged over the processes, as FSDP averages the
    others."""
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import Partial

        parameter = parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)
    return cast(Tensor, parameter)


def _operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What the model's own head would multiply in: autocast's type if that is on."""
    own = torch.promote_types(hidden.dtype, weight.dtype)
    device = hidden.device.type
    if own == torch.float64 or not torch.is_autocast_enabled(device):
        return own
    return torch.get_autocast_dtype(device)


def _measure(kind: str, alpha: float, support: str, k: int, tail: bool | None) -> Measure:
    one_of("divergence", kind, KINDS)
    one_of("support", support, ("full", "student_topk", "teacher_topk"))
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: {alpha} is not in [0, 1]")
    if k < 1:
        raise ValueError(f"k: {k} tokens of support; give at least 1")
    if kind == "js" and alpha in (0.0, 1.0):
        kind = "reverse_kl" if alpha else "forward_kl"
    return Measure(kind, alpha, support, k, support == "student_topk" if tail is None else tail)


def _agree(name: str, value: Tensor | None, shape: torch.Size) -> None:
    if value is not None and value.shape != shape:
        raise ValueError(f"{name}: expected tokens' shape {tuple(shape)}, got {tuple(value.shape)}")


def _like(gradient: Tensor | None, leaf: Tensor | None) -> Tensor | None:
    return None if gradient is None or leaf is None else gradient.to(leaf.dtype)
