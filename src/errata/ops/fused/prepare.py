"""One call of ``token_scores`` or ``fused_loss``: its arguments checked, and its valid tokens gathered as rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..checks import as_float
from ..divergence import FLOOR
from .engine import TokenGradients, accumulation_dtype, fits_at_once, sweep
from .rows import Gradients, Group, ModelRows, RowScores, SparseRows
from .types import DivergenceSettings, Head, ModelStates, SparseTeacher, TokenScores

Leaves = tuple[Tensor, Tensor, Tensor | None]
"""The tensors that get a gradient: the student's hidden rows (N, H), head weight (V, H) and bias (V,)."""


@dataclass(frozen=True)
class Call:
    """What a call knows besides its leaves. Its N rows are the valid tokens, grouped by kind of teacher."""

    head: Head
    """The student's, for its scale and softcap."""
    dtype: torch.dtype
    """What the student's operands are rounded to in products."""
    groups: tuple[Group, ...]
    tokens: Tensor
    """(N,) sampled ids."""
    where: Tensor
    """(N,) each row's place in the flattened (B, T)."""
    shape: torch.Size
    """(B, T)."""
    settings: DivergenceSettings
    temperature: float

    @property
    def has_teacher(self) -> bool:
        """Whether the call was given a teacher at all."""
        return any(group.teacher is not None for group in self.groups)

    def gather(self, value: Tensor | None) -> Tensor | None:
        """(B, T) → (N,), without gradient."""
        return None if value is None else as_float(value.detach()).flatten()[self.where]

    def spread(self, rows: RowScores) -> TokenScores:
        """(N,) → (B, T), 0 elsewhere."""
        logp, teacher_logp, entropy, teacher_entropy, divergence = (
            row.new_zeros(self.shape.numel()).index_put((self.where,), row).view(self.shape) for row in rows
        )
        if not self.has_teacher:
            return TokenScores(logp, None, entropy, None, None)
        return TokenScores(logp, teacher_logp, entropy, teacher_entropy, divergence)

    def run(
        self,
        leaves: Leaves,
        token_gradients: TokenGradients | None = None,
        needs: tuple[bool, ...] = (False, False, False),
        *,
        scores_first: bool = False,
    ) -> tuple[RowScores, list[Tensor | None]]:
        """The scores, and the gradients of those ``leaves`` that need one; other arguments as ``sweep``."""
        acc = accumulation_dtype(leaves[0], leaves[1])
        totals = [
            torch.zeros(leaf.shape, dtype=acc, device=leaf.device) if need and leaf is not None else None
            for need, leaf in zip(needs, leaves, strict=True)
        ]
        gradients = Gradients(*totals) if any(total is not None for total in totals) else None
        with torch.no_grad(), torch.autocast(leaves[0].device.type, enabled=False):
            scores = sweep(
                self._student(leaves),
                self.groups,
                self.tokens,
                self.settings,
                token_gradients,
                gradients,
                scores_first=scores_first,
            )
        return scores, totals

    def fits_at_once(self, leaves: Leaves) -> bool:
        """Whether ``run`` may be called with ``scores_first``."""
        return fits_at_once(self._student(leaves), self.groups, self.settings, dhead=leaves[1].requires_grad)

    def _student(self, leaves: Leaves) -> ModelRows:
        return ModelRows(*leaves, self.head.scale, self.head.softcap, self.temperature, self.dtype)


def prepare(
    student: ModelStates,
    teacher: ModelStates | None,
    tokens: Tensor,
    *,
    mask: Tensor | None,
    teacher_mask: Tensor | None,
    settings: DivergenceSettings,
    temperature: float,
    sparse: SparseTeacher | None,
) -> tuple[Leaves, Call]:
    """Check every argument, and gather the rows of the valid tokens."""
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} must be positive")
    require_shape("mask", mask, tokens.shape)
    require_shape("teacher_mask", teacher_mask, tokens.shape)
    hidden, head = _checked("student", student, tokens.shape)
    vocabulary = head.weight.shape[0]
    valid = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    has_sparse = torch.zeros_like(valid)
    if sparse is not None:
        _check_sparse(sparse, tokens.shape, settings)
        has_sparse = valid & sparse.mask.bool()
    has_dense = torch.zeros_like(valid)
    if teacher is not None:
        has_dense = (valid if teacher_mask is None else valid & teacher_mask.bool()) & ~has_sparse
    # A GPU is waited for here, for the numbers of rows, and nowhere later.
    dense_rows, sparse_rows, other_rows = (
        part.flatten().nonzero().squeeze(1) for part in (has_dense, has_sparse, valid & ~has_dense & ~has_sparse)
    )
    where = torch.cat([dense_rows, sparse_rows, other_rows])
    ids = tokens.flatten()[where]
    if bool(((ids < 0) | (ids >= vocabulary)).any()):
        raise ValueError(f"tokens: an id outside the vocabulary of {vocabulary}; mask such tokens")
    groups: list[Group] = []
    if teacher is not None:
        groups.append(Group(len(dense_rows), _dense_rows(teacher, tokens.shape, dense_rows, vocabulary, temperature)))
    if sparse is not None:
        groups.append(Group(len(sparse_rows), _sparse_rows(sparse, sparse_rows, vocabulary)))
    call = Call(
        replace(head, weight=head.weight.detach(), bias=None),
        _operand_dtype(hidden, head.weight),
        (*groups, Group(len(other_rows), None)),
        ids,
        where,
        tokens.shape,
        settings,
        temperature,
    )
    return (hidden.flatten(0, -2)[where], head.weight, head.bias), call


def require_shape(name: str, value: Tensor | None, shape: torch.Size) -> None:
    """Raise ``ValueError`` unless ``value`` is ``None`` or has the tokens' shape."""
    if value is not None and value.shape != shape:
        raise ValueError(f"{name}: expected tokens' shape {tuple(shape)}, got {tuple(value.shape)}")


def _dense_rows(
    teacher: ModelStates, shape: torch.Size, rows: Tensor, vocabulary: int, temperature: float
) -> ModelRows:
    hidden, head = _checked("teacher", teacher, shape)
    if head.weight.shape[0] != vocabulary:
        raise ValueError(
            f"teacher_head: {head.weight.shape[0]} rows where student_head has {vocabulary}; "
            "cut both to the tokens they share, or pad one with rows of bias -inf"
        )
    return ModelRows(
        hidden.detach().flatten(0, -2)[rows],
        head.weight.detach(),
        None if head.bias is None else head.bias.detach(),
        head.scale,
        head.softcap,
        temperature,
        _operand_dtype(hidden, head.weight),
    )


def _sparse_rows(sparse: SparseTeacher, rows: Tensor, vocabulary: int) -> SparseRows:
    ids, logp = (x.detach().flatten(0, -2)[rows] for x in (sparse.tokens, sparse.logp))
    if bool(((ids < 0) | (ids >= vocabulary))[logp > -torch.inf].any()):
        raise ValueError(
            f"sparse: its tokens hold an id outside the vocabulary of {vocabulary}; give it the weight -inf"
        )
    return SparseRows(ids, logp, sparse.tail)


def _check_sparse(sparse: SparseTeacher, shape: torch.Size, settings: DivergenceSettings) -> None:
    require_shape("sparse", sparse.mask, shape)
    if sparse.tokens.shape[:-1] != shape or sparse.tokens.shape != sparse.logp.shape:
        raise ValueError(
            f"sparse: tokens {tuple(sparse.tokens.shape)} and logp {tuple(sparse.logp.shape)} must both be {(*shape, 'K')}"
        )
    if not sparse.tail and settings.kind != "forward_ce":
        raise ValueError(
            f"divergence: {settings.kind} needs the teacher's probabilities, which samples don't give; use forward_ce"
        )


def _checked(name: str, model: ModelStates, shape: torch.Size) -> tuple[Tensor, Head]:
    """One model's hidden states and head: gathered, of agreeing shapes, the bias finite."""
    hidden, head = model.hidden, model.head if isinstance(model.head, Head) else Head(model.head)
    weight = _gathered(head.weight)
    if weight.dim() != 2:
        raise ValueError(f"{name}_head: expected shape (V, H), got {tuple(weight.shape)}")
    if hidden.shape != (*shape, weight.shape[1]):
        raise ValueError(
            f"{name}_hidden: shape {tuple(hidden.shape)}; with these tokens and {name}_head it must be "
            f"{(*shape, weight.shape[1])}"
        )
    if head.bias is None:
        return hidden, replace(head, weight=weight)
    bias = _gathered(head.bias)
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}_bias: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    return hidden, replace(head, weight=weight, bias=bias.clamp(min=bias.detach().max() - FLOOR))


def _gathered(parameter: Any) -> Tensor:
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
