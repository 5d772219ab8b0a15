"""Evaluation within a run: the policy on held-out problems, and the teacher in its own contexts.

A self-teacher that follows the student too quickly loses its own skill and takes the student along. So each evaluation
also asks how well the *teacher* answers when it is shown what it would be shown in training, and says when that falls.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers.utils import logging

from errata.evaluation import summary
from errata.feedback import completion_text, judge
from errata.records import Group, Rollout, TeacherContext, Verdict
from errata.training.judging import Recorder, combined

logger = logging.get_logger(__name__)

WARN_BELOW = 0.8
"""Share of its best accuracy under which the teacher is said to be losing its skill."""


class Evaluator:
    """Evaluates the trainer's policy and teacher; sampling here never disturbs the training's random numbers."""

    def __init__(self, trainer: Any, write: Callable[[str, dict[str, Any]], None]) -> None:
        self._trainer, self._write = trainer, write
        self._best_teacher = 0.0

    def state_dict(self) -> dict[str, float]:
        return {"best_teacher_accuracy": self._best_teacher}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._best_teacher = state["best_teacher_accuracy"]

    def evaluate(self, dataset: Any) -> dict[str, Any]:
        trainer, args = self._trainer, self._trainer.args
        devices = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(args.seed + trainer.accelerator.process_index)
            rollouts = self._attempts(list(dataset))
            metrics = summary(_rows(rollouts), k=args.eval_k)
            teacher = self._teacher_accuracy(rollouts)
        if teacher is not None:
            metrics["teacher_accuracy"] = teacher
            self._watch(teacher)
        row = {"step": trainer.state.global_step, "task": args.eval_task or args.task, "split": args.eval_split, **metrics}
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
            completions, ids = trainer.sample([row["prompt"] for _, row in part], temperature=temperature, top_p=top_p)
            verdicts = self._judge([row for _, row in part], completions, ids)
            found += [
                Rollout(
                    index=index,
                    problem_id=str(row["problem_id"]),
                    prompt=row["prompt"],
                    completion=completion_text(completion),
                    verdict=verdict,
                    length=len(tokens),
                    reference=row.get("reference"),
                )
                for (index, row), completion, tokens, verdict in zip(part, completions, ids, verdicts, strict=True)
            ]
        everyone = gather_object(found)
        unique = {r.index: r for r in everyone if r.index < len(rows) * args.eval_k}
        return [unique[i] for i in sorted(unique)]

    def _judge(self, rows: list[dict[str, Any]], completions: list[Any], ids: list[list[int]]) -> list[Verdict]:
        columns = {k: [row[k] for row in rows] for k in rows[0] if k not in ("prompt", "completion", "completion_ids")}
        recorders = [r for r in self._trainer.recorders if isinstance(r, Recorder)]
        weights = [
            float(w) for r, w in zip(self._trainer.recorders, self._trainer.reward_weights, strict=True) if isinstance(r, Recorder)
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

    def _teacher_accuracy(self, rollouts: list[Rollout]) -> float | None:
        """Share of right answers the teacher gives where it is shown what it would be shown; ``None`` without any."""
        trainer, k = self._trainer, self._trainer.args.eval_k
        problems = trainer.args.eval_teacher_problems
        if trainer.teacher is None or problems == 0 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            return None
        contexts = self._contexts(rollouts, k, problems)
        if not contexts:
            return None
        prompts = [trainer.renderer.render(r, c).prompt for r, c in contexts]
        answers = self._teacher_answers(prompts)
        by_id = {str(row["problem_id"]): row for row in trainer.eval_dataset}
        rows = [by_id[r.problem_id] for r, _ in contexts]
        verdicts = self._judge(rows, answers, [[] for _ in answers])
        threshold = trainer.method.success_threshold
        return sum((v.score or 0) >= threshold for v in verdicts) / len(verdicts)

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

    def _teacher_answers(self, prompts: list[Any]) -> list[str]:
        trainer = self._trainer
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        ids = trainer.encode_prompts(prompts)
        longest = max(map(len, ids))
        pad = tokenizer.pad_token_id
        device = trainer.accelerator.device
        inputs = torch.tensor([[pad] * (longest - len(x)) + x for x in ids], device=device)
        mask = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in ids], device=device)
        with trainer.teacher.acting(trainer.accelerator.unwrap_model(trainer.model)) as teacher:
            out = trainer.accelerator.unwrap_model(teacher).generate(
                input_ids=inputs,
                attention_mask=mask,
                max_new_tokens=trainer.max_completion_length,
                do_sample=True,
                temperature=trainer.temperature,
                top_p=1.0,
                top_k=0,
                pad_token_id=pad,
                eos_token_id=trainer.eos_token_ids,
            )
        return [str(t) for t in tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)]

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


def _rows(rollouts: list[Rollout]) -> list[dict[str, Any]]:
    return [
        {"problem_id": r.problem_id, "completion": r.completion, "score": r.reward, "length": r.length, "info": dict(r.verdict.info)}
        for r in rollouts
    ]
