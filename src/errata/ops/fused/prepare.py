"""One call of the score op: both models' ends checked, the valid tokens gathered as rows, the way back to (B, T)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..checks import as_float, one_of
from ..divergence import FLOOR, KINDS
from .engine import Gradients, Measure, Named, RowScores, Side, Slopes, Teachers, accumulation_dtype, sweep


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


Leaves = tuple[Tensor, Tensor, Tensor | None]
End = tuple[str, Tensor | None, Tensor | Head | None, Tensor | None]


@dataclass(frozen=True)
class Call:
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
        self, leaves: Leaves, slopes: Slopes | None = None, needs: tuple[bool, ...] = (False, False, False)
    ) -> tuple[RowScores, list[Tensor | None]]:
        """The scores, and the gradients of ``leaves`` where needed."""
        acc = accumulation_dtype(leaves[0], leaves[1])
        totals = [
            torch.zeros(leaf.shape, dtype=acc, device=leaf.device) if need and leaf is not None else None
            for need, leaf in zip(needs, leaves, strict=True)
        ]
        hidden, weight, bias = leaves
        student = Side(hidden, weight, bias, self.head.scale, self.head.softcap, self.temperature, self.dtype)
        gradients = Gradients(*totals) if any(total is not None for total in totals) else None
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            scores = sweep(student, self.teachers, self.tokens, self.measure, slopes, gradients)
        return scores, totals


def prepare(
    student: End,
    teacher: End,
    tokens: Tensor,
    mask: Tensor | None,
    teacher_mask: Tensor | None,
    measure: Measure,
    temperature: float,
    sparse: SparseTeacher | None = None,
    from_the_end: bool = False,
) -> tuple[Leaves, Call]:
    """Check everything, and gather the valid tokens' rows, the last of each response first if ``from_the_end``."""
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} must be positive")
    agree("mask", mask, tokens.shape)
    agree("teacher_mask", teacher_mask, tokens.shape)
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
    call = Call(
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
    agree("sparse", sparse.mask, shape)
    if sparse.tokens.shape[:-1] != shape or sparse.tokens.shape != sparse.logp.shape:
        raise ValueError(
            f"sparse: tokens {tuple(sparse.tokens.shape)} and logp {tuple(sparse.logp.shape)} must both be {(*shape, 'K')}"
        )
    if not sparse.tail and measure.kind != "forward_ce":
        raise ValueError(
            f"divergence: {measure.kind} needs the teacher's probabilities; of samples only forward_ce can be had"
        )


def _checked(end: End, shape: torch.Size) -> tuple[Tensor, Head]:
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


def measure_of(kind: str, alpha: float, support: str, k: int, tail: bool | None) -> Measure:
    one_of("divergence", kind, KINDS)
    one_of("support", support, ("full", "student_topk", "teacher_topk"))
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: {alpha} is not in [0, 1]")
    if k < 1:
        raise ValueError(f"k: {k} tokens of support; give at least 1")
    if kind == "js" and alpha in (0.0, 1.0):
        kind = "reverse_kl" if alpha else "forward_kl"
    return Measure(kind, alpha, support, k, support == "student_topk" if tail is None else tail)


def agree(name: str, value: Tensor | None, shape: torch.Size) -> None:
    if value is not None and value.shape != shape:
        raise ValueError(f"{name}: expected tokens' shape {tuple(shape)}, got {tuple(value.shape)}")
