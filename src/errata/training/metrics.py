"""Metrics of a step: how the rollouts fared, what their teachers were shown, and what the scores say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from errata.contexts import Rendered
from errata.feedback.leaks import mentions_feedback
from errata.methods import Method, TeacherMethod
from errata.ops.scores import TokenScores
from errata.records import Group, Prompt, Rollout, TeacherContext
from errata.training.batch import GenerationBatch


def batch_metrics(method: Method, groups: Sequence[Group], contexts: Sequence[TeacherContext]) -> dict[str, float]:
    """How the groups of all processes fared, and what their teachers were shown. All values are shares."""
    rollouts = [r for group in groups for r in group]
    solved = [sum(r.solved(method.success_threshold) for r in group) for group in groups]
    metrics = {
        "groups/solve_all": sum(s == len(g) for s, g in zip(solved, groups, strict=True)) / len(groups),
        "groups/solve_none": sum(s == 0 for s in solved) / len(groups),
        "rollouts/unjudged": 1 - sum(r.reward is not None for r in rollouts) / len(rollouts),
        "rollouts/mentions_feedback": sum(_mentions(r) for r in rollouts) / len(rollouts),
    }
    if isinstance(method, TeacherMethod):
        kinds = Counter(c.kind for c in contexts)
        metrics |= {f"context/{k}": kinds[k] / len(contexts) for k in sorted({*method.sources, "none", *kinds})}
    return metrics


def prompt_metrics(prompts: Sequence[Rendered]) -> dict[str, float]:
    """Shares of this process's teacher prompts that were cut to fit, or dropped because nothing fitted."""
    return {
        "context/cut": sum(bool(r.cut) for r in prompts) / len(prompts),
        "context/dropped": sum(r.dropped for r in prompts) / len(prompts),
    }


@torch.no_grad()
def score_metrics(
    accelerator: Accelerator,
    batch: GenerationBatch,
    scores: TokenScores,
    *,
    teacher_known: bool,
    clip: tuple[float, float],
) -> dict[str, float]:
    """Means over the tokens of one micro-batch of all processes. Collective: call on every rank.

    Args:
        teacher_known: whether the teacher's own probabilities are known (not of a black box that only gives samples).
        clip: TRL's ``epsilon`` and ``epsilon_high``.
    """
    mask = batch.tokens.mask
    with_teacher = mask & batch.teacher.has_teacher.to(mask.device)[:, None]
    if batch.teacher.sparse is not None:
        with_teacher = with_teacher & (batch.teacher.sparse.query_weight > 0)

    def total(values: Tensor | None, where: Tensor) -> list[Tensor]:
        return [where.new_zeros((), dtype=torch.float32) if values is None else (values * where).sum(), where.sum()]

    named = {
        "entropy": total(scores.student_entropy, mask),
        "teacher/divergence": total(scores.divergence, with_teacher),
    }
    if teacher_known:
        gap = None if scores.teacher_logp is None else scores.teacher_logp - scores.student_logp
        named["teacher/entropy"] = total(scores.teacher_entropy, with_teacher)
        named["teacher/gap"] = total(gap, with_teacher)
    if batch.tokens.old_logp is not None and batch.signals is not None:
        ratio, advantage = (scores.student_logp - batch.tokens.old_logp).exp(), batch.signals.advantage
        low, high = clip
        clipped = ((ratio < 1 - low) & (advantage < 0)) | ((ratio > 1 + high) & (advantage > 0))
        named["clip_ratio/region_mean"] = total(clipped.float(), mask)
    sums = torch.stack([x.float() for pair in named.values() for x in pair])
    sums = accelerator.reduce(sums, reduction="sum").view(-1, 2)
    return {name: value / count for name, (value, count) in zip(named, sums.tolist(), strict=True) if count}


def _mentions(rollout: Rollout) -> bool:
    """Whether a completion speaks of feedback that its policy never saw, neither in its prompt nor from a tool."""
    prompt: Prompt = rollout.prompt
    seen = [dict(m) for m in rollout.turns if m.get("role") == "tool"]
    if seen:
        prompt = [*([{"content": prompt}] if isinstance(prompt, str) else prompt), *seen]
    return mentions_feedback(rollout.turns or rollout.completion, prompt) is not None
