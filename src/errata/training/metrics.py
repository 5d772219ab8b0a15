"""Metrics of a step: how the rollouts fared, what their teachers were shown, and what the scores say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from errata.contexts import Rendered
from errata.feedback.custom import completion_text
from errata.feedback.leaks import QUOTE_WORDS, mentions_feedback, quotes
from errata.methods import Method, TeacherMethod
from errata.ops.scores import Objective, TokenScores
from errata.records import Group, Prompt, Rollout, TeacherContext, is_solved
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
    quotable = [r for r in rollouts if r.reference and len(r.reference.split()) >= QUOTE_WORDS]
    if quotable:
        metrics["rollouts/quotes_reference"] = sum(_quotes(r) for r in quotable) / len(quotable)
    if isinstance(method, TeacherMethod):
        kinds = Counter(c.kind for c in contexts)
        metrics |= {f"context/{k}": kinds[k] / len(contexts) for k in sorted({*method.sources, "none", *kinds})}
    return metrics


def tasks_of(rows: Any, most: int = 20) -> tuple[str, ...]:
    """The names of a data set's environments or tasks, of which metrics are logged one by one; none where there is one only.

    Args:
        rows: a ``Dataset``; of one that is read as it comes, none.
        most: with more tasks than these their metrics would hide the others, and none is logged.
    """
    columns = getattr(rows, "column_names", None) or ()
    column = next((name for name in ("environment", "task") if name in columns), None)
    if column is None or not hasattr(rows, "unique"):
        return ()
    names = sorted({str(name) for name in rows.unique(column) if name is not None})
    return tuple(names) if 1 < len(names) <= most else ()


def task_of(rollout: Rollout) -> str:
    """The name of a rollout's environment, else of its task."""
    return str(rollout.row.get("environment") or rollout.row.get("task") or "")


def metrics_by_task(groups: Sequence[Group], tasks: Sequence[str], threshold: float) -> dict[str, float]:
    """Share of solved rollouts and mean reward by task, of the tasks that occur in these groups."""
    found: dict[str, float] = {}
    for task in tasks:
        rewards = [r.reward for group in groups for r in group if task_of(r) == task and r.reward is not None]
        if rewards:
            found[f"tasks/{task}/solved"] = sum(is_solved(x, threshold) for x in rewards) / len(rewards)
            found[f"tasks/{task}/reward"] = sum(rewards) / len(rewards)
    return found


def prompt_metrics(prompts: Sequence[Rendered]) -> dict[str, float]:
    """Shares of this process's teacher prompts that were cut to fit, or dropped because nothing fitted."""
    return {
        "context/cut": sum(bool(r.cut) for r in prompts) / len(prompts),
        "context/dropped": sum(r.dropped for r in prompts) / len(prompts),
    }


Sums = Mapping[str, tuple[Tensor, Tensor]]
"""Metric -> sum over some tokens, and their number, 0-d each."""


@torch.no_grad()
def score_sums(batch: GenerationBatch, scores: TokenScores, *, teacher_known: bool, objective: Objective) -> Sums:
    """What the metrics of the scores are means of, of one micro-batch of this process.

    Args:
        batch: with its signals.
        teacher_known: whether the teacher's own probabilities are known (not of a black box that only gives samples).
        objective: the run's; its clips say from where on a token counts as clipped.
    """
    signals = batch.signals
    assert signals is not None
    mask = batch.tokens.mask
    with_teacher = mask & batch.teacher.has_teacher.to(mask.device)[:, None]
    if batch.teacher.sparse is not None:
        with_teacher = with_teacher & (batch.teacher.sparse.query_weight > 0)

    def total(values: Tensor | None, where: Tensor) -> tuple[Tensor, Tensor]:
        chosen = where.new_zeros((), dtype=torch.float32) if values is None else (values * where).sum()
        return chosen.float(), where.sum().float()

    named = {
        "entropy": total(scores.student_entropy, mask),
        "teacher/divergence": total(scores.divergence, with_teacher),
    }
    if teacher_known:
        gap = None if scores.teacher_logp is None else scores.teacher_logp - scores.student_logp
        named["teacher/entropy"] = total(scores.teacher_entropy, with_teacher)
        named["teacher/gap"] = total(gap, with_teacher)
    distilled = with_teacher & (signals.sd_weight > 0)
    if objective.token_clip is not None and scores.divergence is not None:
        named["clip_ratio/token_clip"] = total(scores.divergence > objective.token_clip, distilled)
    if batch.tokens.old_logp is not None:
        ratio = (scores.student_logp - batch.tokens.old_logp).exp()
        if objective.surrogate == "clipped":
            low, high = 1 - objective.clip_low, 1 + objective.clip_high
            clipped = ((ratio < low) & (signals.advantage < 0)) | ((ratio > high) & (signals.advantage > 0))
            named["clip_ratio/region_mean"] = total(clipped, mask)
        else:
            distilled = distilled | (mask & (signals.rl_weight > 0))
        if objective.importance_clip is not None:
            named["clip_ratio/importance_clip"] = total(ratio > objective.importance_clip, distilled)
    return named


class StepMeans:
    """Means over all tokens of an optimizer step, of all its micro-batches and processes."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, sums: Sums) -> None:
        """Add a micro-batch. All processes add the same metrics."""
        for name, (value, count) in sums.items():
            before = self._sums.get(name)
            self._sums[name] = (value, count) if before is None else (before[0] + value, before[1] + count)

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means of what was added since the last call, without those over no token. Collective: call on every rank."""
        named, self._sums = self._sums, {}
        if not named:
            return {}
        sums = accelerator.reduce(torch.stack([torch.stack(pair) for pair in named.values()]), reduction="sum")
        return {name: value / count for name, (value, count) in zip(named, sums.tolist(), strict=True) if count}


def _mentions(rollout: Rollout) -> bool:
    """Whether a completion speaks of feedback that its policy had not seen."""
    return any(mentions_feedback(said, seen) is not None for said, seen in _by_turn(rollout))


def _quotes(rollout: Rollout) -> bool:
    """Whether a completion quotes the reference, which its policy had not seen."""
    return any(quotes(said, rollout.reference or "", seen) is not None for said, seen in _by_turn(rollout))


def _by_turn(rollout: Rollout) -> Iterator[tuple[str, Prompt]]:
    """What the policy wrote in each of its turns, the arguments of its calls too, and all that it had seen before."""
    if not rollout.turns:
        yield rollout.completion, rollout.prompt
        return
    prompt = rollout.prompt
    seen: list[dict[str, Any]] = [{"content": prompt}] if isinstance(prompt, str) else list(prompt)
    for message in rollout.turns:
        if message.get("role") in (None, "assistant"):
            calls = [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
            yield "\n".join([completion_text([message]), *_texts(calls)]), list(seen)
        else:
            seen.append(dict(message))


def _texts(value: Any) -> Iterator[str]:
    """All texts in the arguments of calls."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _texts(part)
