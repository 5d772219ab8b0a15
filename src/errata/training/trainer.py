"""``ErrataTrainer``: sample (TRL), judge, choose contexts, let the teacher mark, decide signals, one two-stream loss.

It knows no method by name. Rollouts, verdicts and contexts are gathered, so that every process decides the same for all
groups in the same order.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from errata.contexts import Rendered, Renderer
from errata.experts import Access, Teacher
from errata.methods import Method
from errata.records import Group, Rollout, TeacherContext, groups_of
from errata.training import compat
from errata.training.commenting import Commentator
from errata.training.config import ErrataConfig
from errata.training.evaluating import Evaluator
from errata.training.experts import MakeExpert, self_teacher
from errata.training.forward import accept_head_function
from errata.training.health import log_batch, log_scores
from errata.training.judging import Recorder, attempt, combined
from errata.training.learning import Learner
from errata.training.marking import Marker, generated
from errata.training.recording import RolloutLog
from errata.training.replay import Replay


class ErrataTrainer(compat.TRLHooks):
    """TRL's GRPO trainer that learns from rich feedback.

    Args:
        model: a Hugging Face causal language model or what ``from_pretrained`` takes.
        verifiers: callables judging completions; any TRL reward function will do.
        args: settings.
        method: a decision (``errata.methods.get``).
        train_dataset: rows with ``prompt`` and ``problem_id``; ``reference`` where there is one.
        eval_dataset: rows of the same form for ``evaluate``.
        expert: makes whoever marks instead of the policy, given what prepares a model for the run's parallelism.
        access: how much of the marker's distribution is to be had, and where; all of it unless given.
        run: called with a file's stem (``rollouts``, ``eval``) and a row to keep it in the run directory.
        kwargs: passed to TRL's trainer: processing_class, peft_config, callbacks, tools, environment_factory, ...
    """

    control: Any  # transformers leaves it untyped

    def __init__(
        self,
        model: Any,
        verifiers: list[Any],
        args: ErrataConfig,
        *,
        method: Method,
        train_dataset: Any,
        eval_dataset: Any = None,
        run: Callable[[str, dict[str, Any]], None] = lambda stem, row: None,
        expert: MakeExpert | None = None,
        access: Access | None = None,
        **kwargs: Any,
    ) -> None:
        self._beyond = compat.beyond_the_clipped_surrogate(args)
        if method.uses_teacher and self._beyond:
            raise ValueError(
                f"{', '.join(self._beyond)}: {type(method).__name__} distils beside TRL's clipped surrogate and has no such "
                "option; leave it at TRL's default (loss_type: dapo, grpo, bnpo or dr_grpo) or use method: grpo"
            )
        if isinstance(kwargs.get("environment_factory"), dict):
            raise ValueError(
                "environment_factory: must be one class; several environments in one run are not supported"
            )
        self.method = method
        self.experience = method.experience()
        self.recorders = [
            v if not callable(v) or isinstance(v, torch.nn.Module) else Recorder(v, timeout_s=args.verifier_timeout_s)
            for v in verifiers
        ]
        self.batch_records: tuple[list[Rollout], list[TeacherContext], list[Rendered]] = ([], [], [])
        super().__init__(
            model=model,
            reward_funcs=list(self.recorders),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        # An environment that owns its reward (`get_reward`) was added by TRL: one more verifier, with all a verdict may say.
        for i in range(len(self.recorders), len(self.reward_funcs)):
            self.reward_funcs[i] = Recorder(self.reward_funcs[i], timeout_s=args.verifier_timeout_s)
            self.recorders.append(self.reward_funcs[i])
        if method.uses_teacher and self.aux_loss_enabled:
            raise ValueError("router_aux_loss_coef: not added to a distillation loss; set it to 0 or use method: grpo")
        lora = hasattr(self.model, "peft_config")
        accept_head_function(self.model.get_base_model() if lora else self.model)
        self.teacher: Teacher | None = None
        answering = None
        if method.uses_teacher:
            prepare = self._prepared_teacher
            made = self_teacher(self, prepare) if expert is None else expert(prepare)
            self.teacher, answering = (made, None) if isinstance(made, Teacher) else (None, made)
        self.learner = Learner(self)
        self.marker = Marker(self, access or Access(), answering)
        self.replay: Replay | None = None
        if method.uses_teacher and args.replay_capacity is not None:
            self.replay = Replay(self, args.replay_capacity, args.replay_share, args.replay_limit)
        self.renderer = Renderer(
            args.context_template or "sdpo",
            max_tokens=args.max_teacher_prompt_length,
            count_tokens=lambda prompt: len(self.encode_prompts([prompt])[0]),
            history=self.experience.history is not None,
        )
        self.commentator = Commentator(self, getattr(train_dataset, "column_names", None) or ())
        self.evaluator = Evaluator(self, run)
        self.rollout_log = RolloutLog(run, self.processing_class, keep=args.rollouts_saved)
        self.add_callback(_AfterStep(self))

    def _prepared_teacher(self, teacher: Any) -> Any:
        accept_head_function(teacher)
        return self.prepare_teacher(teacher, stays=self.args.teacher_device is not None)

    # -- one generation batch -------------------------------------------------------------------------------------

    def on_rollouts(self, inputs: list[dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
        mask = generated(batch)
        stage = self.experience.stage
        local = self.commentator(self._rollouts_of(inputs, mask), inputs)
        if self.method.needs_entropy(stage):
            entropy = self.learner.scored(batch, ["student_entropy"]).student_entropy
            means = (entropy.sum(1) / mask.sum(1).clamp(min=1)).tolist()
            local = [replace(r, entropy=e) for r, e in zip(local, means, strict=True)]

        everyone: list[Rollout] = gather_object(local)
        groups = groups_of(everyone, self.num_generations)
        contexts = self._choose_contexts(groups)
        stage = self.experience.stage  # this very batch may have ended the warm-up
        mine = slice(local[0].index, local[0].index + len(local))
        contexts_here = contexts[mine]
        rendered = [
            self.renderer.render(r, c) if c.informs and c.needed else Rendered(r.prompt)
            for r, c in zip(local, contexts_here, strict=True)
        ]
        self.batch_records = (local, contexts_here, rendered)
        log_batch(self, groups, contexts)

        marks = self.marker.mark(contexts_here, rendered, batch, local[0].index)
        device = mask.device
        rates = [self.experience.rate(r.problem_id) for r in local]
        nan = float("nan")
        batch |= {
            "rollout": torch.arange(len(local), device=device),
            "group": torch.tensor([r.index // self.num_generations for r in local], device=device),
            "reward": torch.tensor([nan if r.reward is None else r.reward for r in local], device=device),
            "available": torch.tensor([c.informs for c in contexts_here], device=device),
            "pass_rate": torch.tensor(rates, device=device),
            "stage": torch.tensor(stage),
            **marks,
        }
        if not self.learner.scores_in_place:
            batch |= self.learner.decide(batch, lambda at: self.learner.scored(batch, self.method.reads, at))
        return batch

    def _rollouts_of(self, inputs: list[dict[str, Any]], mask: Tensor) -> list[Rollout]:
        recorders = [r for r in self.recorders if isinstance(r, Recorder)]
        weights = [
            float(w) for r, w in zip(self.recorders, self.reward_weights, strict=True) if isinstance(r, Recorder)
        ]
        verdicts = [combined(v, weights) for v in zip(*(r.verdicts for r in recorders), strict=True)]
        first = self.accelerator.process_index * len(inputs)
        lengths = mask.sum(1).tolist()
        return [
            Rollout(
                index=first + i,
                problem_id=str(row["problem_id"]),
                # An environment adds what it shows at its reset.
                prompt=recorders[0].prompts[i] if self.environment_factories else row["prompt"],
                **attempt(recorders[0].completions[i]),
                verdict=verdicts[i],
                length=lengths[i],
                reference=row.get("reference"),
                row={k: v for k, v in row.items() if k in ("answer", "task")},
            )
            for i, row in enumerate(inputs)
        ]

    def _choose_contexts(self, groups: list[Group]) -> list[TeacherContext]:
        """Contexts of all rollouts of all processes, and the memory's update: the same on every process."""
        step = self.state.global_step
        self.experience.record(groups, step=step, threshold=self.method.success_threshold)
        rng = random.Random(f"{self.args.seed}-{step}")
        epoch = float(self.state.epoch or 0.0)
        return [self.method.context(r, g, experience=self.experience, epoch=epoch, rng=rng) for g in groups for r in g]

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self._beyond or self.aux_loss_enabled:
            return self.trl_loss(model, inputs)
        loss, scores, head = self.learner.loss(model, inputs)
        mask = generated(inputs)
        log_scores(self, scores, inputs, mask)
        if self.replay is not None:
            self.replay.keep(inputs, scores, mask, head)
        if self.accelerator.is_main_process:
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # one process alone cannot gather a head
            self.rollout_log.write(
                self.state.global_step + 1,
                inputs,
                # Of a black box neither is known.
                scores._replace(teacher_logp=None, teacher_entropy=None)
                if self.marker.access.gives == "samples"
                else scores,
                mask,
                *self.batch_records,
                top_tokens=None if sharded else lambda row: self.marker.alternatives(inputs, row, head, 4),
            )
        return loss

    # -- evaluation and state -------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """avg@k and pass@k on the held-out rows, and the teacher's own accuracy in its contexts."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError(
                "eval_dataset: nothing to evaluate on; name a task with a test split or set eval_strategy: no"
            )
        metrics = self.evaluator.evaluate(dataset)
        self.evaluation_due = False
        logged = {f"{metric_key_prefix}_{k}": v for k, v in metrics.items() if isinstance(v, int | float)}
        training = self.model.training
        self.model.eval()  # TRL files what is logged by the model's mode
        self.log(dict(logged))
        self.model.train(training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logged)
        return logged

    def save_state(self, folder: Path) -> None:
        state = {"experience": self.experience.state_dict(), "evaluator": self.evaluator.state_dict()}
        if self.teacher is not None:
            state["teacher"] = self.teacher.state_dict()
        if self.marker.expert is not None and hasattr(self.marker.expert, "state_dict"):
            state["expert"] = self.marker.expert.state_dict()
        if self.replay is not None:
            self.replay.save(folder)
        if self.args.should_save:
            (folder / "state.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
            if self.teacher is not None:
                self.teacher.save(folder)

    def load_state(self, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self.experience.load_state_dict(state["experience"])
        self.evaluator.load_state_dict(state["evaluator"])
        if self.replay is not None:
            self.replay.load(folder)
        if "expert" in state and hasattr(self.marker.expert, "load_state_dict"):
            self.marker.expert.load_state_dict(state["expert"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state.get("teacher", {}))
            self.teacher.load(folder)


class _AfterStep(TrainerCallback):  # type: ignore[misc]
    """Lets a teacher follow, once per optimizer step, and stops where a signal asked for it."""

    def __init__(self, trainer: ErrataTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.evaluation_due:  # interrupted in it
            self._trainer.evaluate()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.teacher is not None:
            self._trainer.teacher.update()
        self._trainer.note_step_end()
        if self._trainer.asked_to_stop():
            control.should_save = control.should_training_stop = True
