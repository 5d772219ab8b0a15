"""What an expert who is not the policy is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from errata.records import Messages

__all__ = ["Answer", "Question"]


@dataclass(frozen=True, slots=True)
class Question:
    """One rollout's states to be asked about."""

    prompt: Messages | str
    """What the expert is shown: chat messages or raw text."""
    prompt_ids: tuple[int, ...]
    """The same as the policy's tokens, chat template and generation prompt applied."""
    completion_ids: tuple[int, ...]
    """The student's own tokens."""
    positions: tuple[int, ...]
    """States asked: position t is the state before completion token t, 0 <= t < len(completion_ids)."""
    seed: int
    """Fresh draws per (run, step, rollout); part of the cache key for samples."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the expert would write at those states, as sparse next-token distributions."""

    positions: tuple[int, ...]
    """States that were answered: a subset of those asked, perhaps empty."""
    tokens: Tensor
    """(P, K) long, ids in the policy's vocabulary."""
    logp: Tensor
    """(P, K) float32 log-weights; -inf pads rows with fewer entries. Samples: log(1/n) each; top-k: the expert's log-probs."""
