"""What a step's log says of how training fares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
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


def length_warning(lengths: Sequence[float], divergences: Sequence[float], *, window: int = 10) -> str | None:
    """A line for the log where answers have become shorter while their divergence from the teacher has not fallen; else ``None``.

    Compares the medians of the first and the last ``window`` steps: length fell by more than a quarter, divergence by
    less than a tenth. An objective that is charged for every token looks like this; a student that learns does not.

    Args:
        lengths: mean number of tokens per answer, one for each step so far.
        divergences: mean divergence per token, one for each step.
        window: steps on either side; with fewer than twice as many there is nothing to say.

    Raises:
        ValueError: on sequences of different lengths, or a window below 1.
    """
    if len(lengths) != len(divergences):
        raise ValueError(
            f"divergences: {len(divergences)} steps, but lengths has {len(lengths)}; give one for each step"
        )
    if window < 1:
        raise ValueError(f"window: {window} is below 1")
    if len(lengths) < 2 * window:
        return None
    (was, now), (kl_was, kl_now) = ((median(x[:window]), median(x[-window:])) for x in (lengths, divergences))
    if now >= 0.75 * was or kl_now <= 0.9 * kl_was:
        return None
    return (
        f"answers fell from {was:.0f} to {now:.0f} tokens while the divergence from the teacher went from {kl_was:.3f} to "
        f"{kl_now:.3f} a token: shorter, not better (docs/length.md)"
    )


def _mentions(rollout: Rollout) -> bool:
    """Whether a completion speaks of feedback that its policy never saw, neither in its prompt nor from a tool."""
    prompt: Any = rollout.prompt
    seen = [m for m in rollout.turns if m.get("role") == "tool"]
    if seen:
        prompt = [*([{"content": prompt}] if isinstance(prompt, str) else prompt), *seen]
    return mentions_feedback(rollout.turns or rollout.completion, prompt) is not None
