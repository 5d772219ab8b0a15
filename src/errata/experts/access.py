"""At which states a dear expert is asked, and what a local distribution says when only some of it is to be had.

The student's loss is a sum over all its states. Access at each with a known probability p and counting every answer 1/p
times keeps that sum right on average (Horvitz and Thompson, 1952), in DistIL's local term and in its future credit alike.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

GIVES = ("samples", "topk", "full")
"""What of an expert's distribution is to be had, the least first."""
WHERE = ("every", "entropy", "disagreement")
_UNIFORM = 0.1
"""Share of the questions that is spread over all states alike, so that none is never asked."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """How an expert is asked. Raises ``ValueError`` naming the setting."""

    gives: str = "full"
    """full: its whole distribution (a model held here). topk: its likeliest tokens' log-probabilities. samples: tokens
    it draws."""
    top_k: int = 20
    """Tokens of a ``topk`` answer; the rest of the mass is one further bucket."""
    samples: int = 1
    """Draws at each state asked, of ``samples``."""
    where: str = "every"
    """Which states are asked, where ``share`` is below 1. every: evenly spaced from a random start. entropy: in proportion to
    the student's entropy. disagreement: in proportion to how far the policy itself, shown the context, departs from the
    student there (one more forward of the policy, no call)."""
    share: float = 1.0
    """Share of a rollout's states that is asked."""
    unbiased: bool = True
    """Count an answer 1/p times, p its state's chance to be asked. False: ask exactly the states that rank highest and count
    each once, which is less noisy and no longer the objective's sum."""

    def __post_init__(self) -> None:
        for name, allowed in (("gives", GIVES), ("where", WHERE)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"expert_args: {name} {getattr(self, name)!r} is none of {', '.join(allowed)}")
        for name in ("top_k", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"expert_args: {name} {getattr(self, name)} must be at least 1")
        if not 0 < self.share <= 1:
            raise ValueError(f"expert_args: share {self.share} is not in (0, 1]")
        if self.share < 1 and self.gives != "samples":
            raise ValueError(f"expert_args: share {self.share} asks at some states alone, which is for gives: samples")

    @classmethod
    def split(cls, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of this class, and the others."""
        own = {f.name for f in fields(cls)}
        return {k: v for k, v in arguments.items() if k in own}, {k: v for k, v in arguments.items() if k not in own}


def chosen_states(score: Tensor, *, share: float, unbiased: bool = True, rng: random.Random) -> dict[int, float]:
    """States to ask about, each with what its answer counts for.

    Args:
        score: (T,) >= 0, what the chance to be asked is in proportion to; of equal scores every (1/share)-th is asked.
        share: expected share of the T states; 1 asks all.
        unbiased: systematic sampling with unequal probabilities, answers counted 1/p times; else the top ``share``.
        rng: draws the start.
    """
    length = score.shape[0]
    if share >= 1 or length == 0:
        return dict.fromkeys(range(length), 1.0)
    if not unbiased:
        top = score.topk(max(round(share * length), 1)).indices.tolist()
        return dict.fromkeys(sorted(top), 1.0)
    chance = inclusion(score, share)
    steps = (chance.cumsum(0) + rng.random()).floor()
    asked = (steps - torch.cat([steps.new_zeros(1), steps[:-1]])) > 0
    return {t: 1.0 / float(chance[t]) for t in asked.nonzero().squeeze(1).tolist()}


def inclusion(score: Tensor, share: float) -> Tensor:
    """(T,) chances to be asked, float64, at most 1 and summing to ``share``·T: in proportion to ``score``, but for a tenth
    that is spread evenly."""
    score, length = score.double().clamp(min=0), score.shape[0]
    even = torch.full_like(score, 1.0 / length)
    wish = even if not score.sum() > 0 else (1 - _UNIFORM) * score / score.sum() + _UNIFORM * even
    chance = torch.zeros_like(score)
    certain = torch.zeros(length, dtype=torch.bool)
    while True:  # whoever would get more than 1 gets 1, and the others share what is left
        left = share * length - int(certain.sum())
        chance = torch.where(certain, 1.0, wish * (left / wish[~certain].sum()))
        over = (chance > 1) & ~certain
        if not over.any():
            return chance
        certain |= over


@torch.no_grad()
def named(logits: Tensor, *, gives: str, top_k: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids and log-weights (P, K) of what distributions (P, V) would say through a narrower door.

    Args:
        logits: of the expert, temperature applied.
        gives: ``topk`` or ``samples``.
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
