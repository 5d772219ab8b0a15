"""What is asked of an expert that answers at chosen states, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from errata.records import Messages


@dataclass(frozen=True, slots=True)
class Question:
    """One rollout with the states at which its expert is asked."""

    prompt: Messages | str
    """What the expert is shown, feedback included."""
    prompt_ids: tuple[int, ...]
    """The same as the policy's token ids."""
    completion_ids: tuple[int, ...]
    """The rollout's own tokens, untouched."""
    positions: tuple[int, ...]
    """Where to answer; position t is the state before completion token t."""
    seed: int
    """Of whatever the expert draws."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A distribution over the policy's vocabulary at some of the states asked for."""

    positions: tuple[int, ...]
    """P of the question's positions, in its order."""
    tokens: Tensor
    """(P, K) long, ids of the policy's vocabulary; anything where ``logp`` is -inf."""
    logp: Tensor
    """(P, K) float32 log-weights, -inf where there is no token; log(1/n) for each of n samples."""
