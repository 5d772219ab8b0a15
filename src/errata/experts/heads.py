"""Output heads of teachers: over the student's vocabulary, and of two models at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from errata.ops.scores import Head


def matched_head(head: Head, vocabulary: int) -> Head:
    """``head`` over exactly the first ``vocabulary`` tokens: the student's head stays as it is.

    Models of one family pad their vocabularies differently (Qwen3: 151,936 rows; Qwen2.5-7B: 152,064). A longer head is
    cut, which is a view: the distribution given that the token is one of the student's. A shorter one is padded with rows
    of bias -inf, which is a copy: tokens it never says.
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
    """The head (V, 2H) of states [(1 - w)·h_live, w·h_base]: logits (1 - w)·z_live + w·z_base, exactly.

    Both of one architecture, so their ``scale`` is the same; neither softcapped, for that is not linear.
    """
    bias = None
    if live.bias is not None and base.bias is not None:
        bias = torch.lerp(live.bias.float(), base.bias.float(), base_weight)
    dtype = torch.promote_types(live.weight.dtype, base.weight.dtype)
    weight = torch.cat([live.weight.to(dtype), base.weight.to(dtype)], dim=1)
    return Head(weight, bias, scale=live.scale)


def whole_head(head: Head, device: torch.device) -> Head:
    """``head`` without gradient, gathered where it is sharded, on ``device``."""
    return replace(
        head,
        weight=_whole(head.weight).to(device),
        bias=None if head.bias is None else _whole(head.bias).to(device),
    )


def _whole(tensor: Any) -> Tensor:
    detached = tensor.detach()
    whole: Tensor = detached.full_tensor() if hasattr(detached, "full_tensor") else detached
    return whole
