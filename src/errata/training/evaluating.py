"""Evaluation within a run: the policy on held-out problems, and the teacher in its own contexts.

A self-teacher that follows the student too quickly loses its own skill and takes the student along. So each evaluation
also asks how well the *teacher* answers when it is shown what it would be shown in training, and says when that falls.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object

from errata.evaluation import summary
from errata.evaluation.sampling import sample
from errata.feedback import judge
from errata.records import Group, Rollout, TeacherContext, Verdict
from errata.training.judging import Recorder, attempt, combined

logger = logging.getLogger(__name__)

WARN_BELOW = 0.8
"""Share of its best accuracy under which the teacher is said to be losing its skill."""


class Evaluator:
    """Evaluates the trainer's policy and teacher; sampling here never disturbs the training's random numbers."""

    def __init__(self, trainer: Any, write: Callable[[str, dict[str, Any]], None]) -> None:
        self._trainer, self._write = trainer, write
        self._best_teacher = 0.0
        self.last_rollouts: list[Rollout] = []

    def state_dict(self) -> dict[str, float]:
        return {"best_teacher_accuracy": self._best_teacher}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._best_teacher = state["best_teacher_accuracy"]

    def evaluate(self, dataset: Any) -> dict[str, Any]:
        trainer, args = self._trainer, self._trainer.args
        devices = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
        with trainer.evaluating(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(args.seed + trainer.accelerator.process_index)
            rows = list(dataset)
            rollouts = self._attempts(rows)
            metrics = summary(judged_rows(rollouts, args.eval_k), k=args.eval_k)
            teacher = self._teacher_accuracy(rollouts, rows)
        if teacher is not None:
            metrics["teacher_accuracy"] = teacher
            self._watch(teacher)
        row = {
            "step": trainer.state.global_step,
            "task": args.eval_task or args.task,
            "split": args.eval_split,
            **metrics,
        }
        if trainer.accelerator.is_main_process:
            self._write("eval", row)
        self.last_rollouts = rollouts
        return metrics

    def _attempts(self, rows: list[dict[str, Any]]) -> list[Rollout]:
        """``eval_k`` judged attempts at every row, in the rows' order, on every process."""
        trainer, args = self._trainer, self._trainer.args
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        mine = [(i, rows[i % len(rows)]) for i in range(rank, -(-len(rows) // world) * world, world)]
        temperature = args.temperature if args.eval_temperature is None else args.eval_temperature
        top_p = args.top_p if args.eval_top_p is None else args.eval_top_p
        found: list[Rollout] = []
        per_call = max(args.eval_batch_size // args.eval_k, 1)
        for start in range(0, len(mine), per_call):
            part = [(i * args.eval_k + j, row) for i, row in mine[start : start + per_call] for j in range(args.eval_k)]
            tried = trainer.sample([row for _, row in part], temperature=temperature, top_p=top_p)
            asked = [{**row, "prompt": prompt} for (_, row), prompt in zip(part, tried.prompts, strict=True)]
            verdicts = self._judge(asked, tried.completions, tried.ids, tried.environments)
            found += [
                Rollout(
                    index=index,
                    problem_id=str(row["problem_id"]),
                    prompt=row["prompt"],
                    **attempt(completion),
                    verdict=verdict,
                    length=length,
                    reference=row.get("reference"),
                    row={k: v for k, v in row.items() if k in ("answer", "task")},
                )
                for (index, _), row, completion, length, verdict in zip(
                    part, asked, tried.completions, tried.lengths, verdicts, strict=True
                )
            ]
        everyone = gather_object(found)
        unique = {r.index: r for r in everyone if r.index < len(rows) * args.eval_k}
        return [unique[i] for i in sorted(unique)]

    def _judge(
        self, rows: list[dict[str, Any]], completions: list[Any], ids: list[list[int]], environments: Any = None
    ) -> list[Verdict]:
        columns = {k: [row[k] for row in rows] for k in rows[0] if k not in ("prompt", "completion", "completion_ids")}
        if environments is not None:
            columns["environments"] = environments
        recorders = [r for r in self._trainer.recorders if isinstance(r, Recorder)]
        weights = [
            float(w)
            for r, w in zip(self._trainer.recorders, self._trainer.reward_weights, strict=True)
            if isinstance(r, Recorder)
        ]
        judged = [
            judge(
                r.verifier,
                prompts=[row["prompt"] for row in rows],
                completions=completions,
                completion_ids=ids,
                columns=columns,
                timeout_s=r.timeout_s,
            )
            for r in recorders
        ]
        return [combined(v, weights) for v in zip(*judged, strict=True)]

    def _teacher_accuracy(self, rollouts: list[Rollout], rows: list[dict[str, Any]]) -> float | None:
        """Share of right answers the teacher gives where it is shown what it would be shown; ``None`` without any."""
        trainer, args = self._trainer, self._trainer.args
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        # A teacher is asked for one turn, so of tasks with tools its accuracy is not known.
        if trainer.teacher is None or args.eval_teacher_problems == 0 or sharded or trainer.tools:
            return None
        contexts = self._contexts(rollouts, args.eval_k, args.eval_teacher_problems)
        if not contexts:
            return None
        by_id = {str(row["problem_id"]): row for row in rows}
        with trainer.teacher.generating(trainer.accelerator.unwrap_model(trainer.model)) as teacher:
            answers = sample(
                trainer.accelerator.unwrap_model(teacher),
                getattr(trainer.processing_class, "tokenizer", trainer.processing_class),
                [by_id[r.problem_id] for r, _ in contexts],
                self._judge_answers,
                k=1,
                temperature=trainer.temperature,
                max_completion_length=trainer.max_completion_length,
                batch_size=args.eval_batch_size,
                seed=args.seed,
                messages=[trainer.renderer.render(r, c).prompt for r, c in contexts],
                timeout_s=None,
                progress=False,
            )
        threshold = trainer.method.success_threshold
        return sum(bool((row["score"] or 0) >= threshold) for row in answers) / len(answers)

    def _judge_answers(
        self, *, prompts: list[Any], completions: list[Any], completion_ids: Any = None, **columns: Any
    ) -> list[Verdict]:
        rows = [{"prompt": p, **{k: v[i] for k, v in columns.items()}} for i, p in enumerate(prompts)]
        return self._judge(rows, completions, completion_ids or [[] for _ in completions])

    def _contexts(self, rollouts: list[Rollout], k: int, problems: int) -> list[tuple[Rollout, TeacherContext]]:
        """The first attempt of each problem that has a context, with that context."""
        trainer = self._trainer
        experience = trainer.method.experience()  # an empty memory: what is asked here must not count as a draw
        rng = random.Random(trainer.args.seed)
        found = []
        for start in range(0, len(rollouts), k):
            group = Group(rollouts[start].problem_id, tuple(rollouts[start : start + k]))
            for rollout in group:
                context = trainer.method.context(rollout, group, experience=experience, epoch=0.0, rng=rng)
                if context.informs:
                    found.append((rollout, context))
                    break
            if len(found) == problems:
                break
        return found

    def _watch(self, accuracy: float) -> None:
        trainer = self._trainer
        self._best_teacher = max(self._best_teacher, accuracy)
        limit = trainer.args.teacher_freeze_below
        if limit is not None and accuracy < limit * self._best_teacher and not trainer.teacher.frozen_early:
            trainer.teacher.freeze()
            logger.warning(
                f"The teacher's own accuracy fell to {accuracy:.0%} (best {self._best_teacher:.0%}): it is frozen from here on."
            )
        elif accuracy < WARN_BELOW * self._best_teacher:
            logger.warning(
                f"The teacher's own accuracy fell to {accuracy:.0%} (best {self._best_teacher:.0%}). A teacher that follows "
                "its student too quickly takes it along: lower teacher_rate, set teacher: frozen, or teacher_freeze_below."
            )


def judged_rows(rollouts: list[Rollout], k: int) -> list[dict[str, Any]]:
    """A row for each of k attempts at each problem, as ``errata.evaluation.sample`` writes them, with the turns."""
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
