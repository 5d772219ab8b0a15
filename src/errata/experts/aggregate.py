"""DAgger's data set aggregation (Ross et al., 2011): past states keep teaching, with the answers that were given there.

What is kept of a rollout is its tokens, the expert's answers at its states as sparse distributions, and the probabilities
its tokens had when they were sampled. Replayed, each state counts for how likely the policy of today is to come there, up
to a limit: min(prod_{i<t} pi_now(y_i) / pi_then(y_i), limit) corrects the states' distribution, at the price of what the
limit cuts off.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Past:
    """One rollout of T tokens as it was marked."""

    prompt_ids: Tensor
    """(P,) what the student was asked, in tokens."""
    completion_ids: Tensor
    """(T,)."""
    mask: Tensor
    """(T,) bool: tokens the student generated."""
    logp: Tensor
    """(T,) their log-probabilities when sampled."""
    tokens: Tensor
    """(T, K) what the expert named."""
    weights: Tensor
    """(T, K) its log-weights; -inf pads."""
    query_weight: Tensor
    """(T,) what each state's answer counts for, 0 where none was given."""


class Aggregate:
    """A bounded store of past rollouts; the oldest go first.

    Args:
        capacity: rollouts kept.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"replay_capacity: {capacity} rollouts; keep at least 1")
        self.capacity = capacity
        self._kept: list[Past] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, rollouts: Sequence[Past]) -> None:
        self._kept = (self._kept + list(rollouts))[-self.capacity :]

    def draw(self, n: int, rng: random.Random) -> list[Past]:
        """``n`` different ones, uniformly; all there are if fewer."""
        return rng.sample(self._kept, min(n, len(self._kept)))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for ``torch.save``."""
        return {"kept": [asdict(past) for past in self._kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What fits of a larger store's state is the newest."""
        self._kept = [Past(**past) for past in state["kept"]][-self.capacity :]


def reach(logp: Tensor, then: Tensor, mask: Tensor, limit: float) -> Tensor:
    """min(prod_{i<t} pi_now / pi_then, ``limit``) of each state, (B,T) of (B,T) log-probabilities, without gradient; 1 at the
    first, 0 where masked."""
    ratio = ((logp - then) * mask).detach()
    before = ratio.cumsum(1) - ratio
    return before.clamp(max=20.0).exp().clamp(max=limit) * mask


def padded(pasts: Sequence[Past], pad: int) -> dict[str, Tensor]:
    """A batch: prompts (B,P) padded left, the rest (B,T,...) right, and the masks of both."""
    prompt = max(p.prompt_ids.shape[0] for p in pasts)
    length = max(p.completion_ids.shape[0] for p in pasts)
    width = max(p.tokens.shape[1] for p in pasts)
    shape = (len(pasts), length)
    batch = {
        "prompt_ids": torch.full((len(pasts), prompt), pad),
        "prompt_mask": torch.zeros(len(pasts), prompt, dtype=torch.long),
        "completion_ids": torch.full(shape, pad),
        "completion_mask": torch.zeros(shape, dtype=torch.long),
        "mask": torch.zeros(shape, dtype=torch.bool),
        "logp": torch.zeros(shape),
        "tokens": torch.zeros(*shape, width, dtype=torch.long),
        "weights": torch.full((*shape, width), -torch.inf),
        "query_weight": torch.zeros(shape),
    }
    for row, past in enumerate(pasts):
        p, t, k = past.prompt_ids.shape[0], past.completion_ids.shape[0], past.tokens.shape[1]
        batch["prompt_ids"][row, prompt - p :], batch["prompt_mask"][row, prompt - p :] = past.prompt_ids, 1
        batch["completion_ids"][row, :t], batch["completion_mask"][row, :t] = past.completion_ids, 1
        for name in ("mask", "logp", "query_weight"):
            batch[name][row, :t] = getattr(past, name)
        for name in ("tokens", "weights"):
            batch[name][row, :t, :k] = getattr(past, name)
    return batch
