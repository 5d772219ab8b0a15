"""Writes a few rollouts of each logged step to ``rollouts.jsonl``, with everything that was decided about their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from errata.ops.scores import TokenScores
from errata.records import Rollout, Row, State
from errata.training.batch import GenerationBatch

Likeliest = Callable[[int], tuple[Tensor, Tensor]]
"""A row of the micro-batch -> the teacher's likeliest tokens (T,n) and their probabilities."""
WriteRow = Callable[[str, Row], None]
"""Keeps a row in the run directory's file of this stem (``rollouts``, ``eval``, ``eval_rollouts``)."""


class RolloutLog:
    """Writes ``keep`` rollouts of each step's first micro-batch, of as many different problems as possible."""

    def __init__(self, write: WriteRow, tokenizer: PreTrainedTokenizerBase, keep: int, threshold: float) -> None:
        """``threshold``: reward from which a rollout counts as solved."""
        self._write, self._keep, self._threshold, self._last = write, keep, threshold, -1
        self._tokenizer = tokenizer

    @torch.no_grad()
    def write(
        self,
        step: int,
        batch: GenerationBatch,
        scores: TokenScores | None,
        generation: Sequence[Rollout],
        likeliest: Likeliest | None = None,
    ) -> None:
        """Write rows of a micro-batch, once a step.

        Args:
            scores: of the micro-batch; fields that are not known are ``None``. ``None``: no scores are known (TRL's own loss).
            generation: this process's rollouts of the whole generation batch.
            likeliest: of the teacher; ``None`` where it is not known.
        """
        if step == self._last:
            return
        self._last = step
        groups: dict[str, list[Rollout]] = {}
        for rollout in generation:
            groups.setdefault(rollout.problem_id, []).append(rollout)
        rates = {problem: [r.solved(self._threshold) for r in group] for problem, group in groups.items()}
        per_token = self._per_token(batch, scores)
        has_teacher = batch.teacher.has_teacher.tolist()
        kept = self._varied([r.problem_id for r in batch.rollouts])
        saved = {batch.rollouts[row].index for row in kept}
        for row in kept:
            rollout, context, prompt = batch.rollouts[row], batch.contexts[row], batch.prompts[row]
            length = int(batch.tokens.completion_mask[row].sum())
            ids = batch.tokens.completion_ids[row, :length].tolist()
            solved = rates[rollout.problem_id]
            record: State = {
                "step": step,
                "problem_id": rollout.problem_id,
                "prompt": rollout.prompt,
                "completion": rollout.completion,
                **({"turns": list(rollout.turns)} if rollout.turns else {}),
                "tokens": [self._tokenizer.decode([i]) for i in ids],
                "generated": batch.tokens.mask[row, :length].int().tolist(),
                "reward": rollout.reward,
                "kind": rollout.verdict.kind,
                "feedback": rollout.verdict.feedback,
                "leaks_answer": rollout.verdict.leaks_answer,
                **({"turn_feedback": list(rollout.verdict.turn_feedback)} if rollout.verdict.turn_feedback else {}),
                "info": dict(rollout.verdict.info),
                **self._per_rollout(batch, row),
                "group_rate": round(sum(solved) / len(solved), 4),
                # Once for each problem, so that a group can be read as a whole.
                "siblings": [attempt(r) for r in groups.pop(rollout.problem_id, ()) if r.index not in saved],
                "context": {
                    "kind": context.kind,
                    "why": context.why,
                    "leaks_answer": context.leaks_answer,
                    "cut": list(prompt.cut),
                    "dropped": prompt.dropped,
                    "prompt": prompt.prompt if context.is_informative else None,
                    **({"by_turn": list(context.by_turn)} if any(context.by_turn) else {}),
                },
                "signals": {
                    name: [round(x, 4) for x in values[row, :length].float().tolist()]
                    for name, values in per_token.items()
                    if has_teacher[row] or not name.startswith(("teacher", "divergence"))
                },
            }
            if likeliest is not None and has_teacher[row]:
                tokens, probabilities = likeliest(row)
                record["alternatives"] = [
                    [[self._tokenizer.decode([i]), round(p, 4)] for i, p in _merged(ids, ps)]
                    for ids, ps in zip(tokens[:length].tolist(), probabilities[:length].tolist(), strict=True)
                ]
            self._write("rollouts", record)

    @staticmethod
    def _per_token(batch: GenerationBatch, scores: TokenScores | None) -> dict[str, Tensor]:
        found: dict[str, Tensor | None] = {} if scores is None else dict(scores._asdict())
        if batch.signals is not None:
            s = batch.signals
            found |= {"advantage": s.advantage, "rl_weight": s.rl_weight, "sd_weight": s.sd_weight, **s.per_token}
        if batch.teacher.sparse is not None:
            found["query_weight"] = batch.teacher.sparse.query_weight
        return {name: value for name, value in found.items() if value is not None}

    @staticmethod
    def _per_rollout(batch: GenerationBatch, row: int) -> dict[str, float]:
        signals = {} if batch.signals is None else batch.signals.per_rollout
        return {name: round(float(value[row]), 4) for name, value in signals.items()}

    def _varied(self, problems: Sequence[str]) -> list[int]:
        """Rows to keep: one of each problem first, in the batch's order."""
        seen: dict[str, int] = {}
        turn = []
        for row, problem in enumerate(problems):
            turn.append((seen.get(problem, 0), row))
            seen[problem] = seen.get(problem, 0) + 1
        return [row for _, row in sorted(turn)[: self._keep]]


def attempt(rollout: Rollout) -> State:
    """A rollout without its tokens' signals: what was said, and the verdict."""
    return {
        "completion": rollout.completion,
        **({"turns": list(rollout.turns)} if rollout.turns else {}),
        "length": rollout.length,
        "reward": rollout.reward,
        "kind": rollout.verdict.kind,
        "feedback": rollout.verdict.feedback,
    }


def write_evaluation(write: WriteRow, step: int, rollouts: Sequence[Rollout], *, k: int, problems: int) -> None:
    """Keep all ``k`` attempts at the first ``problems`` problems of an evaluation, a row for each problem.

    Args:
        rollouts: k of each problem in turn.
    """
    for start in range(0, min(problems * k, len(rollouts)), k):
        group = rollouts[start : start + k]
        write(
            "eval_rollouts",
            {
                "step": step,
                "problem_id": group[0].problem_id,
                "prompt": group[0].prompt,
                "attempts": [attempt(r) for r in group],
            },
        )


def within_limit(file: Path, limit_mb: float, step: int, steps: int) -> bool:
    """Whether rows of ``step`` (from 1, of ``steps`` in the run) may be added to ``file``.

    They may if the file is not larger than ``limit_mb`` in proportion to the steps so far. So the steps that are written are
    spread evenly over the run, and the file ends at most one step's rows above the limit. A resumed run decides the same,
    because nothing but the file and the step is read.
    """
    size = file.stat().st_size if file.exists() else 0
    return size <= limit_mb * 1e6 * (step - 1) / max(steps, 1)


def _merged(ids: Sequence[int], probabilities: Sequence[float], n: int = 4) -> list[tuple[int, float]]:
    """At most ``n`` tokens, each once with all its probability, likeliest first; none where nothing is known."""
    mass: dict[int, float] = {}
    for i, p in zip(ids, probabilities, strict=True):
        if p > 0:
            mass[i] = mass.get(i, 0.0) + p
    return sorted(mass.items(), key=lambda pair: -pair[1])[:n]
