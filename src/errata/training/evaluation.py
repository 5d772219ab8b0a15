"""Evaluation within a run: the policy on held-out problems, and the teacher in its own contexts.

A self-teacher that follows the student too quickly loses its own skill and takes the student along. So each evaluation
also measures how well the *teacher* answers when it is shown what it would be shown in training, and warns when that falls.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedTokenizerBase

from errata.contexts import Renderer
from errata.evaluation import summary
from errata.evaluation.sampling import sample
from errata.experts import Teacher
from errata.methods import Method
from errata.recipe.config import ErrataConfig
from errata.records import Group, Prompt, Rollout, Row, State, TeacherContext, Verdict, is_solved
from errata.training.compat import Sampled
from errata.training.rollouts import Completion, build_rollouts

logger = logging.getLogger(__name__)

WARN_BELOW = 0.8
"""Share of its best accuracy below which a warning says that the teacher is losing its skill."""


class Engine(Protocol):
    """What an evaluation needs of the trainer."""

    model: nn.Module
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    tools: Sequence[object] | None

    def sample(self, rows: Sequence[Row], *, temperature: float, top_p: float) -> Sampled: ...

    def judge(
        self, rows: Sequence[Row], prompts: list[Prompt], completions: list[Completion], ids: list[list[int]]
    ) -> list[Verdict]: ...

    def evaluating(self) -> AbstractContextManager[None]: ...


@dataclass
class Evaluator:
    """Evaluates policy and teacher. Sampling here leaves the training's random numbers as they are."""

    config: ErrataConfig
    method: Method
    renderer: Renderer
    teacher: Teacher | None
    sharded: bool
    best_teacher_accuracy: float = 0.0
    last_rollouts: list[Rollout] = field(default_factory=list)
    """Of the last evaluation, on every process."""

    def state_dict(self) -> dict[str, float]:
        return {"best_teacher_accuracy": self.best_teacher_accuracy}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best_teacher_accuracy = state["best_teacher_accuracy"]

    def __call__(self, engine: Engine, dataset: Iterable[Row]) -> State:
        """avg@k, pass@k and the teacher's accuracy. Collective: call on every rank."""
        config, accelerator = self.config, engine.accelerator
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        with engine.evaluating(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(config.seed + accelerator.process_index)
            rows = list(dataset)
            rollouts = self._rollouts(engine, rows)
            threshold = self.method.success_threshold
            metrics = summary(judged_rows(rollouts, config.eval_k), k=config.eval_k, threshold=threshold)
            accuracy = self._teacher_accuracy(engine, rollouts, rows)
        if accuracy is not None:
            metrics["teacher_accuracy"] = accuracy
            self._watch(accuracy)
        self.last_rollouts = rollouts
        return metrics

    def _rollouts(self, engine: Engine, rows: Sequence[Row]) -> list[Rollout]:
        """``eval_k`` judged rollouts of every row, in the rows' order, on every process."""
        config, k = self.config, self.config.eval_k
        world, rank = engine.accelerator.num_processes, engine.accelerator.process_index
        mine = [(i, rows[i % len(rows)]) for i in range(rank, -(-len(rows) // world) * world, world)]
        temperature = config.temperature if config.eval_temperature is None else config.eval_temperature
        top_p = config.top_p if config.eval_top_p is None else config.eval_top_p
        found: list[Rollout] = []
        per_call = max(config.eval_batch_size // k, 1)
        for start in range(0, len(mine), per_call):
            part = [(i * k + j, row) for i, row in mine[start : start + per_call] for j in range(k)]
            sampled_rows = [row for _, row in part]
            sampled = engine.sample(sampled_rows, temperature=temperature, top_p=top_p)
            verdicts = engine.judge(sampled_rows, sampled.prompts, sampled.completions, sampled.ids)
            indices = [index for index, _ in part]
            found += build_rollouts(
                sampled_rows, sampled.prompts, sampled.completions, verdicts, sampled.lengths, indices
            )
        everyone: list[Rollout] = gather_object(found)
        unique = {r.index: r for r in everyone if r.index < len(rows) * k}
        return [unique[i] for i in sorted(unique)]

    def _teacher_accuracy(self, engine: Engine, rollouts: Sequence[Rollout], rows: Sequence[Row]) -> float | None:
        """Share of problems that the teacher solves in the contexts it would be shown; ``None`` without any."""
        config = self.config
        # A teacher is sampled for one turn, so with tools its accuracy is not known.
        if self.teacher is None or config.eval_teacher_problems == 0 or self.sharded or engine.tools:
            return None
        contexts = self._contexts(rollouts)
        if not contexts:
            return None
        by_id = {str(row["problem_id"]): row for row in rows}
        judged_as = [by_id[r.problem_id] for r, _ in contexts]

        def verdicts(
            *,
            prompts: list[Prompt],
            completions: list[Completion],
            completion_ids: list[list[int]],
            **columns: list[object],
        ) -> list[Verdict]:
            here = [{"prompt": p, **{k: v[i] for k, v in columns.items()}} for i, p in enumerate(prompts)]
            return engine.judge(here, prompts, completions, completion_ids)

        student = engine.accelerator.unwrap_model(engine.model)
        with self.teacher.generating(student) as teacher:
            answers = sample(
                engine.accelerator.unwrap_model(teacher),
                engine.tokenizer,
                [dict(row) for row in judged_as],
                verdicts,
                k=1,
                temperature=config.temperature,
                max_completion_length=config.max_completion_length or 1,
                batch_size=config.eval_batch_size,
                seed=config.seed,
                messages=[self.renderer.render(r, c).prompt for r, c in contexts],
                timeout_s=None,
                progress=False,
            )
        threshold = self.method.success_threshold
        return sum(is_solved(row["score"], threshold) for row in answers) / len(answers)

    def _contexts(self, rollouts: Sequence[Rollout]) -> list[tuple[Rollout, TeacherContext]]:
        """The first rollout of each problem that has a context, with that context."""
        k, problems = self.config.eval_k, self.config.eval_teacher_problems
        memory = self.method.memory()  # an empty one: a draw here must not count as one of training
        rng = random.Random(self.config.seed)
        found: list[tuple[Rollout, TeacherContext]] = []
        for start in range(0, len(rollouts), k):
            group = Group(rollouts[start].problem_id, tuple(rollouts[start : start + k]))
            for rollout in group:
                context = self.method.context(rollout, group, memory=memory, epoch=0.0, rng=rng)
                if context.is_informative:
                    found.append((rollout, context))
                    break
            if len(found) == problems:
                break
        return found

    def _watch(self, accuracy: float) -> None:
        assert self.teacher is not None
        self.best_teacher_accuracy = best = max(self.best_teacher_accuracy, accuracy)
        limit = self.config.teacher_freeze_below
        if limit is not None and accuracy < limit * best and not self.teacher.frozen_early:
            self.teacher.freeze()
            logger.warning(
                f"The teacher's own accuracy fell to {accuracy:.0%} (best {best:.0%}): it is frozen from here on."
            )
        elif accuracy < WARN_BELOW * best:
            logger.warning(
                f"The teacher's own accuracy fell to {accuracy:.0%} (best {best:.0%}). A teacher that follows "
                "its student too quickly takes it along: lower teacher_rate, set teacher: frozen, or teacher_freeze_below."
            )


def judged_rows(rollouts: Sequence[Rollout], k: int) -> list[State]:
    """A row for each of k rollouts of each problem, as ``errata.evaluation.sample`` writes them, with the turns."""
    return [
        {
            "problem_id": r.problem_id,
            "sample": r.index % k,
            "prompt": r.prompt,
            "completion": r.completion,
            "turns": list(r.turns),
            "length": r.length,
            "score": r.reward,
            "kind": r.verdict.kind,
            "feedback": r.verdict.feedback,
            "info": dict(r.verdict.info),
        }
        for r in rollouts
    ]
