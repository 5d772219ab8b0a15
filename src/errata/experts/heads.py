"""Output heads of teachers: over the student's vocabulary, and of two models combined."""

from __future__ import annotations

from dataclasses import replace

import torch

from errata.experts.sharding import gathered
from errata.ops.scores import Head


def matched_head(head: Head, vocabulary: int) -> Head:
    """``head`` (V', H) over exactly the first ``vocabulary`` = V tokens of the student.

    Models of one family pad their vocabularies differently (Qwen3: 151,936 rows; Qwen2.5-7B: 152,064). A longer head is cut,
    which is a view: the distribution conditional on the student's tokens. A shorter one is padded with rows of bias -inf, which
    is a copy: those tokens get probability 0.
    """
    rows = head.weight.shape[0]
    if rows >= vocabulary:
        bias = None if head.bias is None else head.bias[:vocabulary]
        return replace(head, weight=head.weight[:vocabulary], bias=bias)
    extra = vocabulary - rows
    weight = torch.cat([head.weight, head.weight.new_zeros(extra, head.weight.shape[1])])
    bias = head.weight.new_zeros(rows) if head.bias is None else head.bias
    return replace(head, weight=weight, bias=torch.cat([bias, bias.new_full((extra,), float("-inf"))]))


def stacked_head(live: Head, base: Head, base_weight: float) -> Head:
    """The head (V, 2H) of states [(1 - w)·h_live, w·h_base], whose logits are exactly (1 - w)·z_live + w·z_base.

    Args:
        live, base: heads (V, H) of models of one architecture, so with the same ``scale``; without a soft cap, which is not
            linear.
        base_weight: w.
    """
    bias = None
    if live.bias is not None and base.bias is not None:
        bias = torch.lerp(live.bias.float(), base.bias.float(), base_weight)
    dtype = torch.promote_types(live.weight.dtype, base.weight.dtype)
    weight = torch.cat([live.weight.to(dtype), base.weight.to(dtype)], dim=1)
    return Head(weight, bias, scale=live.scale)


def gathered_head(head: Head, device: torch.device) -> Head:
    """``head`` without gradient on ``device``. Collective where it is sharded: call it on every rank."""
    return replace(
        head,
        weight=gathered(head.weight).to(device),
        bias=None if head.bias is None else gathered(head.bias).to(device),
    )
