"""Which states an expensive expert is queried at, and the sparse answer of a distribution that is known in full.

The student's loss is a sum over all its states. If state t is queried with a known probability p_t and its answer counted
1/p_t times, the sum stays unbiased (Horvitz and Thompson, 1952), in DistIL's local term and in its future credit alike.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from errata.validate import Count, PositiveShare, TopK, check_settings

GIVES = ("samples", "topk", "full")
"""Forms of an expert's answer, the least informative first."""
_UNIFORM = 0.1
"""Share of the queries that is spread evenly over all states, so that each has a positive probability."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """How an expert is queried. Raises ``ValueError`` naming the setting."""

    gives: Literal["samples", "topk", "full"] = "full"
    """``full``: the whole distribution, of a model on this machine. ``topk``: log-probabilities of the most likely tokens.
    ``samples``: sampled tokens."""
    top_k: TopK = 20
    """Tokens of a ``topk`` answer; the remaining probability is one further bucket."""
    samples: Count = 1
    """Samples at each queried state, for ``samples``."""
    where: Literal["every", "entropy", "disagreement"] = "every"
    """Which states are queried if ``share`` is below 1. ``every``: evenly spaced from a random start. ``entropy``: in
    proportion to the student's entropy. ``disagreement``: in proportion to the KL divergence of the policy with the context
    from the policy without it (one more forward pass of the policy, no query)."""
    share: PositiveShare = 1.0
    """Share of a rollout's states that is queried, in (0, 1]."""
    unbiased: bool = True
    """Count the answer at state t 1/p_t times, p_t its probability of being queried. ``False``: query the states with the
    highest scores and count each once, which has less variance but is biased."""

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), "expert_args: ")
        if self.share < 1 and self.gives != "samples":
            raise ValueError(
                f"expert_args: share {self.share} needs gives: samples; leave share out to query all states"
            )

    @classmethod
    def split(cls, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """``arguments`` split into those that are fields of this class, and the others."""
        own = {f.name for f in fields(cls)}
        return {k: v for k, v in arguments.items() if k in own}, {k: v for k, v in arguments.items() if k not in own}


def check_temperature(gives: str, expert: object, policy: float) -> None:
    """Raise ``ValueError`` where an expert's answers are at another temperature than the policy's distribution.

    Args:
        gives: what the expert answers with.
        expert: its temperature; what is no number is left to the expert's own check.
        policy: the run's temperature.
    """
    if gives == "topk" and policy != 1:
        raise ValueError(
            f"expert_args: gives: topk: a server's top-k log-probs are at temperature 1, and the run's is {policy:g}; converting "
            "them takes the log-probs of all tokens; set temperature: 1, or gives: samples, which are drawn at the run's"
        )
    if isinstance(expert, int | float) and expert != policy:
        raise ValueError(
            f"expert_args: temperature {expert:g} is not the run's {policy:g}, so two models that agree would seem to differ; "
            "leave it out"
        )


def sample_states(score: Tensor, *, share: float, unbiased: bool = True, rng: random.Random) -> dict[int, float]:
    """The states to query, each with the weight of its answer in sums over all states.

    Args:
        score: (T,) >= 0, to which the probabilities are proportional (see ``inclusion_probabilities``).
        share: expected share of the T states; 1 selects all.
        unbiased: systematic sampling with unequal probabilities, with weights 1/p_t; else the top ``share``, with weight 1.
        rng: draws the start.
    """
    length = score.shape[0]
    if share >= 1 or length == 0:
        return dict.fromkeys(range(length), 1.0)
    if not unbiased:
        top = score.topk(max(round(share * length), 1)).indices.tolist()
        return dict.fromkeys(sorted(top), 1.0)
    probability = inclusion_probabilities(score, share)
    steps = (probability.cumsum(0) + rng.random()).floor()
    selected = (steps - torch.cat([steps.new_zeros(1), steps[:-1]])) > 0
    return {t: 1.0 / float(probability[t]) for t in selected.nonzero().squeeze(1).tolist()}


def inclusion_probabilities(score: Tensor, share: float) -> Tensor:
    """(T,) float64 probabilities of being queried, each in (0, 1], that sum to ``share``·T.

    Nine tenths of the queries are distributed in proportion to ``score`` (T,), one tenth evenly.
    """
    score, length = score.double().clamp(min=0), score.shape[0]
    even = torch.full_like(score, 1.0 / length)
    wanted = even if not score.sum() > 0 else (1 - _UNIFORM) * score / score.sum() + _UNIFORM * even
    probability = torch.zeros_like(score)
    certain = torch.zeros(length, dtype=torch.bool)
    while True:  # cap probabilities at 1 and distribute the rest over the other states, until none is above 1
        left = share * length - int(certain.sum())
        probability = torch.where(certain, 1.0, wanted * (left / wanted[~certain].sum()))
        over = (probability > 1) & ~certain
        if not over.any():
            return probability
        certain |= over


@torch.no_grad()
def sparse_distribution(logits: Tensor, *, gives: str, top_k: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token ids and log-weights (P, K), float32, of a ``topk`` or ``samples`` answer for ``logits`` (P, V).

    Args:
        logits: of the expert, temperature applied.
        gives: ``topk``: its ``top_k`` most likely tokens and their log-probabilities. ``samples``: ``samples`` draws, each
            with log-weight log(1/``samples``).
        seed: of the draws.
    """
    logp = logits.float().log_softmax(-1)
    if gives == "topk":
        found = logp.topk(min(top_k, logp.shape[-1]), dim=-1)
        return found.indices, found.values
    # Drawn on the CPU, so that every device draws the same.
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(logp.exp().cpu(), samples, replacement=True, generator=generator)
    return drawn, torch.full(drawn.shape, 1.0 / samples).log()
