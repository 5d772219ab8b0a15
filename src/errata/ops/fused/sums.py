"""What the first sweep over the vocabulary collects, and the arithmetic of one block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Sums:
    """Sums over each block of the logits z of one model, (blocks, n), with z taken less the block's largest."""

    top: Tensor
    """The block's largest logit."""
    mass: Tensor
    """Σ e^z."""
    tilt: Tensor
    """Σ e^z·z."""
    cross: Tensor
    """Σ e^z·z', z' the other model's logit."""
    sampled: Tensor
    """The sampled token's logit (not less the largest) in its own block, 0 elsewhere."""

    @classmethod
    def empty(cls, blocks: int, n: int, device: torch.device, dtype: torch.dtype) -> Sums:
        return cls(*torch.zeros(5, blocks, n, device=device, dtype=dtype))

    def add_block(
        self, b: int, z: Tensor, tokens: Tensor, *, shifted: Tensor, exponential: Tensor, products: Tensor
    ) -> None:
        """Collect block b of logits z (length, n).

        Args:
            tokens: (n,) index of each sampled token within the block; outside [0, length) if it is in another block.
            shifted: filled with z less its largest.
            exponential: filled with e^shifted; may be z.
            products: filled with e^shifted·shifted; may be any of the others.
        """
        torch.amax(z, 0, out=self.top[b])
        inside = (tokens >= 0) & (tokens < z.shape[0])
        sampled = z.gather(0, tokens.clamp(0, z.shape[0] - 1).unsqueeze(0)).squeeze(0)
        self.sampled[b] = torch.where(inside, sampled, 0.0)
        torch.sub(z, self.top[b], out=shifted)
        torch.exp(shifted, out=exponential)
        torch.sum(exponential, 0, out=self.mass[b])
        dot(exponential, shifted, into=products, out=self.tilt[b])

    def finish(self) -> Distribution:
        """The softmax over all blocks."""
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
    """The softmax of one model's logits z at n tokens: p = e^(z - top)·share within each block."""

    top: Tensor
    """(blocks, n) largest logit of each block."""
    peak: Tensor
    """(n,) largest logit."""
    share: Tensor
    """(blocks, n)."""
    log_mass: Tensor
    """(n,) log Σ e^(z - peak)."""
    lse: Tensor
    """(n,) log Σ e^z."""
    entropy: Tensor
    """(n,)."""
    sampled: Tensor
    """(n,) logit of the sampled token."""
    logp: Tensor
    """(n,) log-probability of the sampled token."""


def product_dtype(dtype: torch.dtype, device: torch.device, acc: torch.dtype) -> torch.dtype:
    """What a product's operands are stored in: half precision only where a product can sum in float32."""
    return dtype if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) else acc


def operand(tensor: Tensor, dtype: torch.dtype, acc: torch.dtype) -> Tensor:
    """``tensor`` rounded to ``dtype``, in the type that a product takes."""
    return tensor.to(dtype).to(product_dtype(dtype, tensor.device, acc))


def add_product(total: Tensor, a: Tensor, b: Tensor, *, overwrite: bool = False) -> None:
    """total += a·b, accumulated in total's type. ``overwrite``: total = a·b, whatever total held."""
    beta = 0 if overwrite else 1
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=beta)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, out=total)


def dot(a: Tensor, b: Tensor, into: Tensor, out: Tensor | None = None) -> Tensor:
    """Σ over the vocabulary of a·b: (length, n) twice → (n,). The products are left in ``into``, which may be a or b."""
    torch.mul(a, b, out=into)
    return torch.sum(into, 0, out=out) if out is not None else into.sum(0)
