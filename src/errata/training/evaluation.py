"""Evaluation within a run: the policy on held-out problems, and the teacher in its own contexts.

A self-teacher that follows the student too quickly loses its own skill and takes the student along. So each evaluation
also measures how well the *teacher* answers when it is shown what it would be shown in training, and warns when that falls.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import stdev
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedTokenizerBase

from errata.contexts import Renderer
from errata.evaluation import summary
from errata.evaluation.sampling import Sampling
from errata.experts import Teacher
from errata.methods import Method, TeacherMethod
from errata.recipe.config import ErrataConfig
from errata.records import Group, Prompt, Rollout, Row, State, TeacherContext, Verdict, groups_of
from errata.training.compat import Sampled, Shown
from errata.training.metrics import task_of
from errata.training.rollouts import Completion, build_rollouts

logger = logging.getLogger(__name__)

WARN_BELOW = 0.8
"""Share of its best accuracy below which a warning says that the teacher is losing its skill."""


class Engine(Protocol):
    """What an evaluation needs of the trainer."""

    model: nn.Module
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase

    def sample(
        self, rows: Sequence[Row], *, temperature: float, top_p: float, shown: Shown | None = None
    ) -> Sampled: ...

    def judge(
        self, rows: Sequence[Row], prompts: list[Prompt], completions: list[Completion], ids: list[list[int]]
    ) -> list[Verdict]: ...

    def evaluating(self) -> AbstractContextManager[None]: ...


def sampling_of(config: ErrataConfig, template_kwargs: Row | None = None) -> Sampling:
    """How a run's evaluations sample; ``template_kwargs``: over the run's own."""
    return Sampling(
        temperature=config.temperature if config.eval_temperature is None else config.eval_temperature,
        top_p=config.top_p if config.eval_top_p is None else config.eval_top_p,
        top_k=config.top_k,
        seed=config.seed,
        max_completion_length=config.max_completion_length or 1,
        chat_template_kwargs={**(config.chat_template_kwargs or {}), **(template_kwargs or {})},
    )


def judged_rollouts(
    engine: Engine, rows: Sequence[Row], k: int, sampling: Sampling, *, batch_size: int, shown: Shown | None = None
) -> list[Rollout]:
    """``k`` judged rollouts of every row, in the rows' order, on every process. Collective: call on every rank.

    Args:
        batch_size: completions sampled at a time.
        shown: prompts to answer instead of the rows' own, one per row, and the model that does. Verifiers get the rows' own.
    """
    world, rank = engine.accelerator.num_processes, engine.accelerator.process_index
    torch.manual_seed(sampling.seed + rank)
    # All processes sample equally many; what one samples a second time is dropped.
    mine = range(rank, -(-len(rows) // world) * world, world)
    found: list[Rollout] = []
    per_call = max(batch_size // k, 1)
    for start in range(0, len(mine), per_call):
        part = [(i, j) for i in mine[start : start + per_call] for j in range(k)]
        here = [rows[i % len(rows)] for i, _ in part]
        told = None if shown is None else shown._replace(prompts=[shown.prompts[i % len(rows)] for i, _ in part])
        sampled = engine.sample(here, temperature=sampling.temperature, top_p=sampling.top_p, shown=told)
        judged_as = sampled.prompts if told is None else [row["prompt"] for row in here]
        verdicts = engine.judge(here, judged_as, sampled.completions, sampled.ids)
        indices = [i * k + j for i, j in part]
        found += build_rollouts(here, sampled.prompts, sampled.completions, verdicts, sampled.lengths, indices)
    everyone: list[Rollout] = gather_object(found)
    unique = {r.index: r for r in everyone if r.index < len(rows) * k}
    return [unique[i] for i in sorted(unique)]


@dataclass
class Evaluator:
    """Evaluates policy and teacher. Sampling here leaves the training's random numbers as they are."""

    config: ErrataConfig
    method: Method
    renderer: Renderer
    teacher: Teacher | None
    sharded: bool
    context_method: Callable[[Rollout], Method]
    """The method whose settings choose a rollout's context."""
    tasks: Sequence[str] = ()
    """The tasks whose metrics are wanted one by one."""
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
            rows = list(dataset)
            sampling = sampling_of(config)
            rollouts = judged_rollouts(engine, rows, config.eval_k, sampling, batch_size=config.eval_batch_size)
            threshold = self.method.success_threshold
            metrics = summary(judged_rows(rollouts, config.eval_k), k=config.eval_k, threshold=threshold)
            metrics["sampling"] = sampling.row()
            for task in self.tasks:
                own = [r for r in rollouts if task_of(r) == task]
                if own:
                    of_task = summary(judged_rows(own, config.eval_k), k=config.eval_k, threshold=threshold)
                    metrics |= {
                        f"{task}/{name}": value for name, value in of_task.items() if name.startswith(("avg@", "pass@"))
                    }
            metrics |= self._of_teacher(engine, rollouts, rows)
        if "teacher_accuracy" in metrics:
            self._watch(metrics["teacher_accuracy"], says=accelerator.is_main_process)
        self.last_rollouts = rollouts
        return metrics

    def _of_teacher(self, engine: Engine, rollouts: Sequence[Rollout], rows: Sequence[Row]) -> State:
        """How many problems the teacher solves in the contexts it would be shown, and the policy without; or nothing."""
        config, threshold = self.config, self.method.success_threshold
        if self.teacher is None or config.eval_teacher_problems == 0 or self.sharded:
            return {}
        contexts = self._contexts(rollouts)
        if not contexts:
            return {}
        by_id = {str(row["problem_id"]): row for row in rows}
        kwargs = self.method.teacher_chat_template_kwargs if isinstance(self.method, TeacherMethod) else {}
        prompts = [self.renderer.render(r, c).prompt for r, c in contexts]
        with self.teacher.generating(engine.accelerator.unwrap_model(engine.model)) as teacher:
            answers = judged_rollouts(
                engine,
                [by_id[r.problem_id] for r, _ in contexts],
                1,
                sampling_of(config, kwargs),
                batch_size=config.eval_batch_size,
                shown=Shown(prompts, engine.accelerator.unwrap_model(teacher), kwargs),
            )
        groups = {g.problem_id: g for g in groups_of(rollouts, config.eval_k)}
        own = [len(groups[r.problem_id].successes(threshold)) / config.eval_k for r, _ in contexts]
        return compared([a.solved(threshold) for a in answers], own)

    def _contexts(self, rollouts: Sequence[Rollout]) -> list[tuple[Rollout, TeacherContext]]:
        """The first rollout of each problem that has a context, with that context."""
        k, problems = self.config.eval_k, self.config.eval_teacher_problems
        memory = self.method.memory()  # an empty one: a draw here must not count as one of training
        rng = random.Random(self.config.seed)
        found: list[tuple[Rollout, TeacherContext]] = []
        for start in range(0, len(rollouts), k):
            group = Group(rollouts[start].problem_id, tuple(rollouts[start : start + k]))
            for rollout in group:
                context = self.context_method(rollout).context(rollout, group, memory=memory, epoch=0.0, rng=rng)
                if context.is_informative:
                    found.append((rollout, context))
                    break
            if len(found) == problems:
                break
        return found

    def _watch(self, accuracy: float, *, says: bool = True) -> None:
        assert self.teacher is not None
        self.best_teacher_accuracy = best = max(self.best_teacher_accuracy, accuracy)
        limit = self.config.teacher_freeze_below
        if limit is not None and accuracy < limit * best and not self.teacher.frozen_early:
            self.teacher.freeze()
            if says:
                logger.warning(
                    f"The teacher's own accuracy fell to {accuracy:.0%} (best {best:.0%}): it is frozen from here on."
                )
        elif says and accuracy < WARN_BELOW * best:
            logger.warning(
                f"The teacher's own accuracy fell to {accuracy:.0%} (best {best:.0%}). A teacher that follows "
                "its student too quickly takes it along: lower teacher_rate, set teacher: frozen, or teacher_freeze_below."
            )


def compared(teacher: Sequence[float], student: Sequence[float]) -> dict[str, float]:
    """Accuracies on the same n problems, one number in [0, 1] for each, and the teacher's lead with its standard error.

    The standard error is missing where there is one problem.
    """
    n = len(teacher)
    lead = [t - s for t, s in zip(teacher, student, strict=True)]
    found = {
        "teacher_accuracy": sum(teacher) / n,
        "student_accuracy": sum(student) / n,
        "teacher_problems": n,
        "teacher_lead": sum(lead) / n,
    }
    return found if n < 2 else {**found, "teacher_lead_se": stdev(lead) / n**0.5}


def judged_rows(rollouts: Sequence[Rollout], k: int, sampling: Sampling | None = None) -> list[State]:
    """A row for each of k rollouts of each problem, as ``errata.evaluation.sample`` writes them, with the turns.

    ``sampling``: how they were sampled, where the rows shall say it.
    """
    said = {} if sampling is None else {"sampling": sampling.row()}
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
            **said,
        }
        for r in rollouts
    ]
