"""Batches for tests of methods: any part can be given, the rest stands for nothing in particular."""

from __future__ import annotations

import torch

from errata.experience import Experience
from errata.methods import Batch, Scores
from errata.ops.scores import TokenScores
from errata.records import Rollout, TeacherContext, Verdict


class FixedMemory(Experience):
    """A memory at a given stage, with given pass rates by rollout."""

    def __init__(self, stage=2, rates=()):
        super().__init__()
        self.fixed_stage, self.rates = stage, rates

    @property
    def stage(self):
        return self.fixed_stage

    def rate(self, problem_id):
        return self.rates[int(problem_id)] if len(self.rates) else 0.5


def all_scores(scores):
    """``TokenScores`` as a method sees them that declares every field."""
    return Scores(scores, TokenScores._fields, "Test")


def make_batch(mask, scores, *, stage=2, pass_rate=None, **parts):
    b = mask.shape[0]
    nothing = torch.zeros(b)
    reward = parts.get("reward", nothing)
    rollouts = [
        Rollout(i, str(i), "p", "c", Verdict(None if r != r else float(r))) for i, r in enumerate(reward.tolist())
    ]
    rates = [] if pass_rate is None else pass_rate.tolist()
    values = {
        "rollouts": rollouts,
        "contexts": [TeacherContext("none")] * b,
        "memory": FixedMemory(stage, rates),
        "mask": mask,
        "reward": nothing,
        "advantage": nothing,
        "group": torch.zeros(b, dtype=torch.long),
        "has_teacher": torch.ones(b).bool(),
        "has_context": torch.ones(b).bool(),
        "success": torch.zeros(b).bool(),
        "scores": scores if isinstance(scores, Scores) else all_scores(scores),
    }
    return Batch(**{**values, **parts})
