"""Sampling from a geometric mixture of two models: one generates, and the other's logits are mixed into its own."""

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
    """A context in which ``live``'s forward, and so its ``generate``, uses the logits (1 - w)·z_live + w·z_base.

    Args:
        live: a Hugging Face causal language model, unwrapped.
        base: the other model's forward, with the same arguments and outputs.
        base_weight: w, in [0, 1].
    """
    live_forward, patched = live.forward, live.__dict__.get("forward")
    base_cache: Any = None  # the other model's key-value cache in the current generation

    @functools.wraps(type(live).forward)  # `generate` reads the signature
    def forward(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        nonlocal base_cache
        if past_key_values is None:
            base_cache = None
        elif past_key_values.get_seq_length() == 0:
            base_cache = copy.deepcopy(past_key_values)  # a new generation: an empty cache of the same kind
        base_outputs = base(*args, past_key_values=base_cache, **kwargs)
        outputs = live_forward(*args, past_key_values=past_key_values, **kwargs)
        outputs.logits = torch.lerp(outputs.logits, base_outputs.logits.to(outputs.logits), base_weight)
        return outputs

    live.forward = types.MethodType(forward, live)
    try:
        yield
    finally:
        if patched is None:
            del live.forward
        else:
            live.forward = patched
