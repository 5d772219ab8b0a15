"""Reductions as weights: loss = Σ token_weights · x. One weight per token keeps the denominator visible and the
streams separate."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import as_float, masked, one_of, two_dimensional

KINDS: tuple[str, ...] = ("dapo", "grpo", "bnpo", "dr_grpo")


def token_weights(
    mask: Tensor,
    kind: str = "dapo",
    *,
    total: Tensor | float | None = None,
    max_length: int | None = None,
    accumulation: int = 1,
    among: Tensor | None = None,
) -> Tensor:
    """The weight of each token in the batch's loss, so that Σ weight·x equals what TRL's GRPO trainer divides by.

    ===========  ==========================================================================  =====================
    ``dapo``     1 / ``total``: the mean over all tokens of the optimizer step                 DAPO, arXiv 2503.14476
    ``bnpo``     1 / tokens of this micro-batch / ``accumulation``                             TRL
    ``grpo``     1 / its response's tokens / B / ``accumulation``: mean of responses' means    GRPO, arXiv 2402.03300
    ``dr_grpo``  1 / (B·``max_length``) / ``accumulation``: no bias towards short answers      Dr. GRPO, 2503.20783
    ===========  ==========================================================================  =====================

    Args:
        mask: (B, T); which tokens take part in this stream.
        total: ``dapo``'s denominator: tokens of the whole step over the number of processes (whose gradients are
            averaged), so that it already covers gradient accumulation. ``None``: this mask's own tokens.
        max_length: ``dr_grpo``'s constant length, in tokens.
        accumulation: micro-batches per optimizer step.
        among: (B', T') mask of the responses that are averaged over, if ``mask`` has further responses beside them: each token of
            ``mask`` then has the weight that it would have there. ``None``: ``mask`` itself.

    Returns:
        (B, T), float32, 0 where masked. All 0 for an empty mask.

    Raises:
        ValueError: on an unknown ``kind`` or ``dr_grpo`` without ``max_length``.
    """
    two_dimensional("mask", mask)
    one_of("kind", kind, KINDS)
    valid = as_float(mask.bool())
    others = valid if among is None else as_float(among.bool())
    if kind == "dapo":
        count = others.sum() if total is None else torch.as_tensor(total, dtype=valid.dtype, device=valid.device)
        return masked(valid / count.clamp(min=1.0 if total is None else torch.finfo(valid.dtype).tiny), mask)
    if kind == "bnpo":
        weight = valid / others.sum().clamp(min=1.0)
    elif kind == "grpo":
        weight = valid / valid.sum(1, keepdim=True).clamp(min=1.0) / others.shape[0]
    else:
        if max_length is None:
            raise ValueError("max_length: dr_grpo divides by it; give the maximum completion length in tokens")
        weight = valid / (others.shape[0] * max_length)
    return masked(weight / accumulation, mask)
