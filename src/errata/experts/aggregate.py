"""DAgger's data set aggregation (Ross et al., 2011, arXiv 1011.0686): a store of past rollouts with the expert's answers.

Stored of a rollout are its tokens, the expert's sparse distributions at its states, and its tokens' log-probabilities when they
were sampled. When it is replayed, state t has the importance weight min(prod_{i<t} pi_now(y_i) / pi_then(y_i), limit), which
corrects the distribution of states to today's policy; clipping at the limit makes it biased.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PastRollout:
    """One rollout of T tokens with the expert's answers."""

    prompt_ids: Tensor
    """(P,) the student's prompt."""
    completion_ids: Tensor
    """(T,) the student's completion."""
    mask: Tensor
    """(T,) bool: tokens the student generated."""
    logp: Tensor
    """(T,) log-probabilities of the completion when it was sampled."""
    tokens: Tensor
    """(T, K) ids of the expert's tokens at each state."""
    weights: Tensor
    """(T, K) their log-weights, padded with -inf."""
    query_weight: Tensor
    """(T,) query weight: how often each state's answer is counted, 0 where there is none."""


class Aggregate:
    """A bounded store of past rollouts, of which the oldest are dropped first.

    Args:
        capacity: largest number of rollouts.
    Raises:
        ValueError: ``capacity`` below 1.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"replay_capacity: {capacity} rollouts; keep at least 1")
        self.capacity = capacity
        self._rollouts: list[PastRollout] = []

    def __len__(self) -> int:
        return len(self._rollouts)

    def add(self, rollouts: Sequence[PastRollout]) -> None:
        """Append rollouts, the oldest first."""
        self._rollouts = (self._rollouts + list(rollouts))[-self.capacity :]

    def draw(self, n: int, rng: random.Random) -> list[PastRollout]:
        """``n`` different rollouts, uniformly at random; all if there are fewer."""
        return rng.sample(self._rollouts, min(n, len(self._rollouts)))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for ``torch.save``."""
        return {"kept": [asdict(past) for past in self._rollouts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict``; of a larger store's, the newest ``capacity`` rollouts."""
        self._rollouts = [PastRollout(**past) for past in state["kept"]][-self.capacity :]


def prefix_importance(logp: Tensor, then: Tensor, mask: Tensor, limit: float) -> Tensor:
    """Clipped importance weights of states: min(prod_{i<t} pi_now(y_i) / pi_then(y_i), ``limit``), (B,T), without gradient.

    Args:
        logp: (B,T) the tokens' log-probabilities now.
        then: (B,T) their log-probabilities when sampled.
        mask: (B,T) bool; mquery_weight tokens have weight 0 and do not change the product.
    """
    ratio = ((logp - then) * mask).detach()
    before = ratio.cumsum(1) - ratio
    return before.clamp(max=20.0).exp().clamp(max=limit) * mask


def pad_rollouts(pasts: Sequence[PastRollout], pad: int) -> dict[str, Tensor]:
    """A batch of the rollouts' fields: prompts (B,P) padded on the left with ``pad``, the rest (B,T,...) on the right.

    Beside the fields it has ``prompt_mask`` (B,P) and ``completion_mask`` (B,T).
    """
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
