"""What one sweep over the vocabulary collects, and the arithmetic of a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Sums:
    """What one sweep collects of a distribution, by block (blocks, n): with z less the block's largest, Σe^z and its
    like."""

    top: Tensor
    mass: Tensor
    """Σ e^z."""
    tilt: Tensor
    """Σ e^z·z."""
    cross: Tensor
    """Σ e^z·z', z' the other side's."""
    sampled: Tensor
    """The sampled token's logit in its own block, 0 elsewhere."""

    @classmethod
    def empty(cls, blocks: int, n: int, device: torch.device, dtype: torch.dtype) -> Sums:
        return cls(*torch.zeros(5, blocks, n, device=device, dtype=dtype))

    def finish(self) -> Distribution:
        peak = self.top.amax(0)
        weight = (self.top - peak).exp()
        mass = (weight * self.mass).sum(0)
        share = weight / mass
        log_mass = mass.log()
        sampled = self.sampled.sum(0)
        expected = (share * (self.tilt + (self.top - peak) * self.mass)).sum(0)
        return Distribution(
            self.top,
            peak,
            share,
            log_mass,
            peak + log_mass,
            entropy=(log_mass - expected).clamp(min=0.0),
            sampled=sampled,
            logp=sampled - peak - log_mass,
        )


class Distribution(NamedTuple):
    """A tile's softmax: p = e^(z - top)·share within each block."""

    top: Tensor
    """(blocks, n)."""
    peak: Tensor
    """(n,) largest logit."""
    share: Tensor
    """(blocks, n)."""
    log_mass: Tensor
    """(n,) log Σ e^(z - peak)."""
    lse: Tensor
    """(n,) log Σ e^z."""
    entropy: Tensor
    sampled: Tensor
    logp: Tensor


def product_dtype(dtype: torch.dtype, device: torch.device, acc: torch.dtype) -> torch.dtype:
    """What a product's operands are stored in: half precision only where a product can sum in float32."""
    return dtype if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) else acc


def operand(tensor: Tensor, dtype: torch.dtype, acc: torch.dtype) -> Tensor:
    """``tensor`` rounded to ``dtype``, as a product takes it."""
    return tensor.to(dtype).to(product_dtype(dtype, tensor.device, acc))


def add_product(total: Tensor, a: Tensor, b: Tensor, anew: bool = False) -> None:
    """total += a·b, accumulated in total's type; ``anew``: total = a·b, whatever was there."""
    beta = 0 if anew else 1
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=beta)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, out=total)


def dot(a: Tensor, b: Tensor, into: Tensor, out: Tensor | None = None) -> Tensor:
    """Σ over the vocabulary of a·b: (block, n) twice → (n,). The products are left in ``into``, which may be either."""
    torch.mul(a, b, out=into)
    return torch.sum(into, 0, out=out) if out is not None else into.sum(0)
