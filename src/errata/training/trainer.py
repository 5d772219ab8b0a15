"""``ErrataTrainer``: sample (TRL), judge, choose contexts, let the teacher mark, decide signals, one two-stream loss.

It knows no method by name. Rollouts, verdicts and contexts are gathered, so that every process decides the same for all
groups in the same order; scores are gathered, so that credit is centred over whole groups wherever they were sampled.
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
from errata.methods import Batch, Method
from errata.ops.reduce import token_weights
from errata.ops.scores import Head, TokenScores, fused_loss, token_scores
from errata.records import Group, Rollout, TeacherContext, groups_of
from errata.training import compat
from errata.training.commenting import Commentator
from errata.training.config import ErrataConfig
from errata.training.evaluating import Evaluator
from errata.training.experts import MakeExpert, self_teacher
from errata.training.forward import accept_head_function, at_completion, completion_inputs
from errata.training.health import log_batch, log_scores
from errata.training.judging import Recorder, attempt, combined
from errata.training.marking import SPARSE, Marker, generated
from errata.training.recording import RolloutLog
from errata.training.replay import Replay, fresh_and_past


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
            entropy = self.scored(batch).student_entropy
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
        if not self._scores_in_place:
            batch |= self._decide(batch, self.scored(batch) if self.method.needs_scores else None)
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

    # -- scores, signals, loss ------------------------------------------------------------------------------------

    @property
    def _scores_in_place(self) -> bool:
        """One micro-batch is the whole generation batch and used once: the loss's own forward can be scored."""
        return bool(self.args.steps_per_generation == 1 and self.num_iterations == 1)

    def _score_options(self) -> dict[str, Any]:
        m = self.method
        return {
            "divergence": m.divergence,
            "alpha": m.alpha,
            "support": m.support,
            "k": m.top_k or 1,
            "temperature": self.temperature,
        }

    @torch.no_grad()
    def scored(self, batch: dict[str, Any], divergence: str | None = None) -> TokenScores:
        """Scores of this process's generation batch by the student as it stands, in micro-batches; the teacher's fields
        where the batch holds its marks, by another ``divergence`` than the method's if one is named."""
        size = self.args.per_device_train_batch_size
        mask = generated(batch)
        parts = []
        with compat.no_checkpointing(self):
            for start in range(0, len(mask), size):
                rows = slice(start, start + size)
                tokens, keep = batch["completion_ids"][rows], mask[rows]
                part = {k: v[rows] for k, v in batch.items() if k in ("teacher_states", *SPARSE)}

                def on_head(
                    hidden: Tensor, head: Any, tokens: Tensor = tokens, keep: Tensor = keep, part: Any = part
                ) -> TokenScores:
                    hidden = at_completion(hidden, tokens.shape[1])
                    return self._token_scores(tokens, keep, part, divergence, hidden, head)

                inputs = completion_inputs(
                    batch["prompt_ids"][rows], batch["prompt_mask"][rows], tokens, batch["completion_mask"][rows]
                )
                with self.accelerator.autocast():
                    parts.append(self.model(**inputs, with_head=on_head))
        return TokenScores._make(None if f[0] is None else torch.cat(f) for f in zip(*parts, strict=True))

    def _token_scores(
        self,
        tokens: Tensor,
        mask: Tensor,
        batch: dict[str, Any],
        divergence: str | None,
        hidden: Tensor,
        head: Any,
    ) -> TokenScores:
        if "teacher_states" not in batch:
            return token_scores(hidden, head, None, None, tokens, mask=mask, temperature=self.temperature)
        options = self._score_options() | ({} if divergence is None else {"divergence": divergence, "support": "full"})
        told = self.marker.arguments(batch, hidden, head, mask)
        return token_scores(hidden, head, tokens=tokens, mask=mask, **told, **options)

    def _decide(self, batch: dict[str, Any], scores: TokenScores | None, *, log: bool = True) -> dict[str, Any]:
        """The method's signals for this process's rollouts, decided over the rollouts of all processes."""
        everyone = self._gathered
        mask = everyone(generated(batch))
        whole = Batch(
            mask=mask.bool(),
            scores=None if scores is None else TokenScores._make(None if f is None else everyone(f) for f in scores),
            reward=everyone(batch["reward"]),
            advantage=everyone(batch["advantages"]),
            group=everyone(batch["group"]),
            has_teacher=everyone(batch["has_teacher"]),
            available=everyone(batch["available"]),
            success=everyone(batch["reward"]) >= self.method.success_threshold,
            pass_rate=everyone(batch["pass_rate"]),
            stage=int(batch["stage"]),
            asked=everyone(batch["asked"]) if "asked" in batch else None,
        )
        signals = self.method.signals(whole)
        for name, value in signals.metrics.items() if log else ():
            self.log_metric(name, value)
        count = mask.sum().float()
        n_rl, n_sd = count, count
        if self.method.denominators == "routed":
            # Where few states were asked, each stands for several.
            n_rl, n_sd = (signals.rl_weight > 0).sum().float(), ((signals.sd_weight > 0) * whole.marks).sum()
        rows = slice(
            self.accelerator.process_index * len(batch["rollout"]),
            (self.accelerator.process_index + 1) * len(batch["rollout"]),
        )
        columns = batch["completion_ids"].shape[1]
        mine = {
            "advantage": signals.advantage,
            "rl_weight": signals.rl_weight,
            "sd_weight": signals.sd_weight,
            **{f"extra/{k}": v for k, v in signals.extras.items()},
        }
        return {**{k: v[rows, :columns] for k, v in mine.items()}, "n_rl": n_rl, "n_sd": n_sd}

    def _gathered(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        if values.dim() > 1:
            values = self.accelerator.pad_across_processes(values, dim=1)
        return self.accelerator.gather(values)  # type: ignore[no-any-return]

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self._beyond or self.aux_loss_enabled:
            return self.trl_loss(model, inputs)
        tokens, mask = inputs["completion_ids"], generated(inputs)
        student_head: list[Any] = []
        past = None if self.replay is None else self.replay.ride_along(inputs)

        def on_head(hidden: Tensor, head: Any) -> tuple[Tensor, TokenScores]:
            student_head.append(head)
            hidden, past_hidden = fresh_and_past(hidden, tokens.shape, past)
            if "rl_weight" not in inputs and not self._one_walk(inputs):
                with torch.no_grad():
                    scores = None
                    if self.method.needs_scores:
                        scores = self._token_scores(tokens, mask, inputs, None, hidden.detach(), head)
                inputs.update(self._decide(inputs, scores))
            loss, scores = self._loss(hidden, head, tokens, mask, inputs)
            if self.replay is not None and past is not None and past_hidden is not None:
                loss = loss + self.replay.loss(
                    past_hidden, head, past, self._total(inputs["n_sd"].clamp(min=1)).reciprocal()
                )
            return loss, scores

        if past is None or self.replay is None:
            student = completion_inputs(inputs["prompt_ids"], inputs["prompt_mask"], tokens, inputs["completion_mask"])
        else:
            student = self.replay.joined(inputs, past)
        with self.accelerator.autocast():
            loss, scores = model(**student, with_head=on_head)
        log_scores(self, scores, inputs, mask)
        if self.replay is not None:
            self.replay.keep(inputs, scores, mask, student_head[0])
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
                top_tokens=None if sharded else lambda row: self.marker.alternatives(inputs, row, student_head[0], 4),
            )
        return loss  # type: ignore[no-any-return]

    def _one_walk(self, inputs: dict[str, Any]) -> bool:
        """Whether the loss can decide its signals as it goes: what a token is given depends on later tokens alone, all of
        them are here, and one kind of teacher marked them."""
        marked = bool(inputs["has_teacher"].any())
        mixed = "named_tokens" in inputs and any(s is not None for s in inputs["teacher_states"])
        alone = self.accelerator.num_processes == 1 and self.method.denominators == "shared"
        return self.method.looks_ahead and alone and marked and not mixed

    def _loss(
        self, hidden: Tensor, head: Head, tokens: Tensor, mask: Tensor, inputs: dict[str, Any]
    ) -> tuple[Tensor, TokenScores]:
        told = self.marker.arguments(inputs, hidden, head, mask)

        def weighed(decided: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
            """Advantage and the two weights, their denominators in them."""
            rl_weight = decided["rl_weight"] * self._token_weights(mask, decided["rl_weight"], decided["n_rl"])
            sd_weight = decided["sd_weight"] * self._token_weights(mask, decided["sd_weight"], decided["n_sd"])
            if "importance_sampling_ratio" in inputs:  # vLLM sampled with slightly other probabilities
                rl_weight = rl_weight * inputs["importance_sampling_ratio"]
                sd_weight = sd_weight * inputs["importance_sampling_ratio"]
            return decided["advantage"], rl_weight, sd_weight

        m = self.method
        options = {
            "old_logp": inputs.get("old_per_token_logps"),
            "mask": mask,
            "surrogate": m.surrogate,
            "clip_low": self.epsilon_low,
            "clip_high": self.epsilon_high,
            "importance_clip": m.importance_clip,
            "token_clip": m.token_clip,
            **told,
            **self._score_options(),
        }
        if "rl_weight" not in inputs:
            loss, scores = fused_loss(
                hidden, head, tokens=tokens, decide=lambda s: weighed(self._decide(inputs, s, log=False)), **options
            )
            inputs.update(self._decide(inputs, scores))
            return loss, scores
        advantage, rl_weight, sd_weight = weighed(inputs)
        if inputs["has_teacher"].any():
            options["sd_weight"] = sd_weight
        else:
            options |= {"teacher_hidden": None, "teacher_head": None, "sparse": None}
        return fused_loss(hidden, head, tokens=tokens, advantage=advantage, rl_weight=rl_weight, **options)

    def _token_weights(self, mask: Tensor, weight: Tensor, count: Tensor) -> Tensor:
        """(B,T): what each token's loss is divided by, as TRL's ``loss_type`` says, over the tokens a stream counts."""
        training = self.model.training
        steps = self.current_gradient_accumulation_steps if training else 1
        counted = mask if self.method.denominators == "shared" else weight > 0
        return token_weights(
            counted,
            self.loss_type,
            total=self._total(count),
            max_length=self.max_completion_length,
            accumulation=steps,
        )

    def _total(self, count: Tensor) -> Tensor:
        """What a token-mean divides by in one micro-batch, of the tokens in the generation batch of all processes: the
        optimizer averages over processes and micro-batches."""
        steps = self.current_gradient_accumulation_steps if self.model.training else 1
        share: float = steps / self.args.steps_per_generation / self.accelerator.num_processes
        return count * share

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
    """Lets a teacher follow, once per optimizer step."""

    def __init__(self, trainer: ErrataTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.teacher is not None:
            self._trainer.teacher.update()
