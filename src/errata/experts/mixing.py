"""Sampling from a geometric mixture of two models: one generates, the other's logits are mixed into its own."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def mixed_logits(live: Any, base: Callable[..., Any], base_weight: float) -> Iterator[None]:
    """Inside, ``live``'s forward gives the logits (1 - w)·its own + w·``base``'s, so that its ``generate`` samples those.

    Args:
        live: a Hugging Face causal language model, unwrapped.
        base: the other model's forward, with the same arguments and kind of outputs.
        base_weight: w.
    """
    own, patched = live.forward, live.__dict__.get("forward")
    cache: Any = None  # the other model's, of the generation under way

    @functools.wraps(type(live).forward)  # `generate` reads the signature
    def forward(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        nonlocal cache
        if past_key_values is None:
            cache = None
        elif past_key_values.get_seq_length() == 0:
            cache = copy.deepcopy(past_key_values)  # still empty: one of the same kind
        theirs = base(*args, past_key_values=cache, **kwargs)
        outputs = own(*args, past_key_values=past_key_values, **kwargs)
        outputs.logits = torch.lerp(outputs.logits, theirs.logits.to(outputs.logits), base_weight)
        return outputs

    live.forward = types.MethodType(forward, live)
    try:
        yield
    finally:
        if patched is None:
            del live.forward
        else:
            live.forward = patched
