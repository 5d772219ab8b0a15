"""What is asked of an expert that is not held in memory whole, and what it says: sparse next-token distributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.records import Messages


@dataclass(frozen=True, slots=True)
class Question:
    """One rollout's states to be asked about."""

    prompt: Messages | str
    """What the expert is shown: chat messages or raw text."""
    prompt_ids: tuple[int, ...]
    """The same in the policy's tokens, chat template and generation prompt included."""
    completion_ids: tuple[int, ...]
    """The student's own tokens."""
    positions: tuple[int, ...]
    """States asked about: t is the state before completion token t."""
    seed: int
    """Of this rollout in this step, so that draws are fresh and a resumed run asks the very same."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the expert would write at those states."""

    positions: tuple[int, ...]
    """States that were answered, P of those asked; may be none."""
    tokens: Tensor
    """(P, K) ids in the policy's vocabulary."""
    logp: Tensor
    """(P, K) float32 log-weights: of n samples log(1/n) each, of a top-k the expert's log-probabilities; -inf pads."""


def spread(answers: list[Answer | None], weights: list[dict[int, float]], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Answers of B rollouts over their T tokens: ids (B,T,K), log-weights (B,T,K) and what each state counts (B,T).

    Args:
        answers: one per rollout; ``None`` where nothing could be had.
        weights: of each rollout, what a state that was asked about counts for in sums over all states.
        length: T.
    """
    width = max((a.tokens.shape[1] for a in answers if a is not None and a.positions), default=1)
    tokens = torch.zeros(len(answers), length, width, dtype=torch.long)
    logp = torch.full((len(answers), length, width), -torch.inf)
    counts = torch.zeros(len(answers), length)
    for row, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is None or not answer.positions:
            continue
        at = torch.tensor(answer.positions)
        k = answer.tokens.shape[1]
        tokens[row, at, :k], logp[row, at, :k] = answer.tokens, answer.logp.float()
        counts[row, at] = torch.tensor([weight[t] for t in answer.positions])
    return tokens, logp, counts
