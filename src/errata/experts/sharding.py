"""Weights that are sharded over processes: by FSDP2 (DTensors) or by DeepSpeed ZeRO-3 (parameters that are empty meanwhile)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def whole(parameters: Iterable[Tensor], *, changed: bool = False) -> Iterator[None]:
    """A context in which ZeRO-3's parameters are whole; all others stay as they are. Collective: call it on every rank.

    Args:
        changed: whether they are changed within it; what the first process wrote is then kept by all.
    """
    sharded = [p for p in parameters if _is_zero3(p) and (changed or not _is_whole(p))]
    if not sharded:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(sharded, modifier_rank=0 if changed else None):
        yield


def gathered(tensor: Tensor) -> Tensor:
    """``tensor`` without gradient, whole where it is sharded. Collective where it is: call it on every rank."""
    if _is_zero3(tensor) and not _is_whole(tensor):
        with whole([tensor]):
            return tensor.detach().clone()
    detached: Any = tensor.detach()
    full: Tensor = detached.full_tensor() if hasattr(detached, "full_tensor") else detached
    return full


def placed_like(whole_tensor: Tensor, tensor: Any) -> Tensor:
    """``whole_tensor`` on the device of ``tensor``, and sharded as it is by FSDP2."""
    if hasattr(tensor, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole_tensor.to(tensor.device), tensor.device_mesh, tensor.placements)
    return whole_tensor.to(tensor.device)


def _is_zero3(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def _is_whole(tensor: Any) -> bool:
    """Whether ZeRO-3 holds the parameter whole just now, as within a forward."""
    return bool(tensor.ds_status.name == "AVAILABLE")
