"""Checks and conversions of an op's arguments: equal shapes, known choices, at least float32."""

from __future__ import annotations

from torch import Tensor
from torch import float32 as _float32
from torch import float64 as _float64


def same_shape(name: str, tensor: Tensor, **others: Tensor | None) -> None:
    """Raise ``ValueError`` naming the argument whose shape differs from that of ``tensor`` (``None`` is let
    through)."""
    for other, value in others.items():
        if value is not None and value.shape != tensor.shape:
            raise ValueError(
                f"{other}: shape {tuple(value.shape)} differs from {name}'s {tuple(tensor.shape)}; give them one shape"
            )


def two_dimensional(name: str, tensor: Tensor) -> None:
    """Raise ``ValueError`` unless ``tensor`` is (B, T)."""
    if tensor.dim() != 2:
        raise ValueError(f"{name}: expected shape (B, T), got {tuple(tensor.shape)}")


def per_rollout(name: str, value: Tensor, batch: int) -> None:
    """Raise ``ValueError`` unless ``value`` is (B,)."""
    if value.shape != (batch,):
        raise ValueError(f"{name}: expected one value per rollout, shape ({batch},), got {tuple(value.shape)}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` naming the choices unless ``value`` is among them."""
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is unknown; choose one of {', '.join(allowed)}")


def as_float(tensor: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32."""
    return tensor if tensor.dtype == _float64 else tensor.to(_float32)


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """``tensor`` in float32 with exactly 0 where ``mask`` is 0, also over NaN and infinity."""
    return as_float(tensor).masked_fill(~mask.bool(), 0.0)
