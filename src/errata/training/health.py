"""What a step's log says of how training fares."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from errata.feedback.leaks import mentions_feedback
from errata.ops.scores import TokenScores
from errata.records import Group, Rollout, TeacherContext


def log_batch(trainer: Any, groups: list[Group], contexts: list[TeacherContext]) -> None:
    """How the groups of all processes fared, and what their teachers were shown."""
    judged = [r for g in groups for r in g if r.reward is not None]
    solved = [sum((r.reward or 0) >= trainer.method.success_threshold for r in g) for g in groups]
    everyone = len(contexts)
    trainer.log_metric("groups/solve_all", sum(s == len(g) for s, g in zip(solved, groups, strict=True)) / len(groups))
    trainer.log_metric("groups/solve_none", sum(s == 0 for s in solved) / len(groups))
    trainer.log_metric("rollouts/unjudged", 1 - len(judged) / everyone)
    trainer.log_metric("rollouts/mentions_feedback", sum(_mentions(r) for g in groups for r in g) / everyone)
    if trainer.method.uses_teacher:
        kinds = Counter(c.kind for c in contexts)
        for kind in sorted({*trainer.method.sources, "none", *kinds}):
            trainer.log_metric(f"context/{kind}", kinds[kind] / everyone)
    for name, value in trainer.experience.metrics().items():
        trainer.log_metric(name, value)


@torch.no_grad()
def log_scores(trainer: Any, scores: TokenScores, inputs: dict[str, Any], mask: Tensor) -> None:
    """Means over the tokens of one micro-batch of all processes."""
    taught = mask & inputs["has_teacher"][:, None]
    if "asked" in inputs:
        taught = taught & (inputs["asked"] > 0)
    rendered = trainer.batch_records[2]

    def total(values: Tensor | None, where: Tensor) -> list[Tensor]:
        return [where.new_zeros((), dtype=torch.float32) if values is None else (values * where).sum(), where.sum()]

    gap = None if scores.teacher_logp is None else scores.teacher_logp - scores.student_logp
    named = {
        "entropy": total(scores.student_entropy, mask),
        "teacher/divergence": total(scores.divergence, taught),
    }
    if trainer.marker.access.gives != "samples":  # of which neither is known
        named |= {"teacher/entropy": total(scores.teacher_entropy, taught), "teacher/gap": total(gap, taught)}
    old = inputs.get("old_per_token_logps")
    if old is not None:
        ratio = (scores.student_logp - old).exp()
        advantage = inputs["advantage"]
        clipped = ((ratio < 1 - trainer.epsilon_low) & (advantage < 0)) | (
            (ratio > 1 + trainer.epsilon_high) & (advantage > 0)
        )
        named["clip_ratio/region_mean"] = total(clipped.float(), mask)
    sums = trainer.accelerator.reduce(
        torch.stack([x.float() for pair in named.values() for x in pair]), reduction="sum"
    ).view(-1, 2)
    for name, (value, count) in zip(named, sums.tolist(), strict=True):
        if count:
            trainer.log_metric(name, value / count)
    if trainer.method.uses_teacher:
        trainer.log_metric("context/cut", sum(bool(r.cut) for r in rendered) / len(rendered))
        trainer.log_metric("context/dropped", sum(r.dropped for r in rendered) / len(rendered))


def _mentions(rollout: Rollout) -> bool:
    """Whether a completion speaks of feedback that its policy never saw, neither in its prompt nor from a tool."""
    prompt: Any = rollout.prompt
    seen = [m for m in rollout.turns if m.get("role") == "tool"]
    if seen:
        prompt = [*([{"content": prompt}] if isinstance(prompt, str) else prompt), *seen]
    return mentions_feedback(rollout.turns or rollout.completion, prompt) is not None
