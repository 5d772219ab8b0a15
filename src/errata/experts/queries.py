"""Queries to an expert that does not give its whole distribution, and its answers: sparse next-token distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.records import Messages


@dataclass(frozen=True, slots=True)
class Query:
    """The states of one rollout at which an expert is queried."""

    prompt: Messages | str
    """The expert's prompt: chat messages or raw text."""
    prompt_ids: tuple[int, ...]
    """The same prompt in the policy's tokens, chat template and generation prompt included."""
    completion_ids: tuple[int, ...]
    """The student's completion, T tokens."""
    positions: tuple[int, ...]
    """The queried states, each in [0, T): state t is the one before completion token t."""
    seed: int
    """Seed of this rollout in this step: draws differ between steps, and a resumed run makes the same query."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The expert's next-token distributions at P of the queried states, each given by K tokens."""

    positions: tuple[int, ...]
    """The P states that were answered, a subset of the queried ones; may be empty."""
    tokens: Tensor
    """(P, K) ids in the policy's vocabulary."""
    logp: Tensor
    """(P, K) float32 log-weights: log(1/n) for each of n samples, or the expert's top-k log-probabilities; padded with -inf."""


def joined(first: Answer | None, second: Answer | None) -> Answer | None:
    """The answers to two queries about one rollout as one; ``None`` where there is neither."""
    if first is None or second is None:
        return first or second
    width = max(first.tokens.shape[1], second.tokens.shape[1])
    tokens, logp = (
        torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1]), value=fill) for x in (a, b)])
        for a, b, fill in ((first.tokens, second.tokens, 0), (first.logp, second.logp, -torch.inf))
    )
    return Answer(first.positions + second.positions, tokens, logp)


def pad_answers(
    answers: Sequence[Answer | None], weights: Sequence[Mapping[int, float]], length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Answers of B rollouts as dense tensors over T = ``length`` completion tokens.

    Args:
        answers: one per rollout; ``None`` for a rollout without an answer.
        weights: for each rollout, the weight of each queried state in sums over all states, by position.
        length: T.
    Returns:
        Token ids (B,T,K), log-weights (B,T,K) padded with -inf, and query weights (B,T), 0 where there is no answer.
    """
    width = max((a.tokens.shape[1] for a in answers if a is not None and a.positions), default=1)
    tokens = torch.zeros(len(answers), length, width, dtype=torch.long)
    logp = torch.full((len(answers), length, width), -torch.inf)
    query_weight = torch.zeros(len(answers), length)
    for row, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is None or not answer.positions:
            continue
        at = torch.tensor(answer.positions)
        k = answer.tokens.shape[1]
        tokens[row, at, :k], logp[row, at, :k] = answer.tokens, answer.logp.float()
        query_weight[row, at] = torch.tensor([weight[t] for t in answer.positions])
    return tokens, logp, query_weight
