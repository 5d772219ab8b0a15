"""``ErrataTrainer``: sample (TRL), judge, choose contexts, let the teacher mark, decide signals, one two-stream loss.

It knows no method by name. Rollouts, verdicts and contexts are gathered, so that every process decides the same for all
groups in the same order; scores are gathered, so that credit is centred over whole groups wherever they were sampled.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback

from errata.contexts import Rendered, Renderer
from errata.experts import SelfTeacher, Teacher
from errata.methods import Batch, Method
from errata.ops.reduce import token_weights
from errata.ops.scores import Head, TokenScores, fused_loss, token_scores
from errata.records import Group, Rollout, TeacherContext, groups_of
from errata.training import compat
from errata.training.config import ErrataConfig
from errata.training.evaluating import Evaluator
from errata.training.forward import accept_head_function, at_completion, completion_inputs, head_of, top_tokens
from errata.training.judging import Recorder, combined
from errata.training.recording import RolloutLog
from errata.training.teaching import hidden_at_completions, padded_states, teacher_sequences


class ErrataTrainer(compat.TRLHooks):
    """TRL's GRPO trainer that learns from rich feedback.

    Args:
        model: a Hugging Face causal language model or what ``from_pretrained`` takes.
        verifiers: callables judging completions; any TRL reward function will do.
        args: settings.
        method: a decision (``errata.methods.get``).
        train_dataset: rows with ``prompt`` and ``problem_id``; ``reference`` where there is one.
        eval_dataset: rows of the same form for ``evaluate``.
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
        **kwargs: Any,
    ) -> None:
        self._beyond = compat.beyond_the_clipped_surrogate(args)
        if method.uses_teacher and self._beyond:
            raise ValueError(
                f"{', '.join(self._beyond)}: {type(method).__name__} distils beside TRL's clipped surrogate and has no such "
                "option; leave it at TRL's default (loss_type: dapo, grpo, bnpo or dr_grpo) or use method: grpo"
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
        if method.uses_teacher and self.aux_loss_enabled:
            raise ValueError("router_aux_loss_coef: not added to a distillation loss; set it to 0 or use method: grpo")
        lora = hasattr(self.model, "peft_config")
        accept_head_function(self.model.get_base_model() if lora else self.model)
        self.teacher: Teacher | None = self._self_teacher() if method.uses_teacher else None
        self.renderer = Renderer(
            args.context_template,
            max_tokens=args.max_teacher_prompt_length,
            count_tokens=lambda prompt: len(self.encode_prompts([prompt])[0]),
        )
        self.evaluator = Evaluator(self, run)
        self.rollout_log = RolloutLog(run, self.processing_class, keep=args.rollouts_saved)
        self.add_callback(_AfterStep(self))

    def _self_teacher(self) -> Teacher:
        args, kind = self.args, self.args.teacher or self.method.teacher
        if args.teacher_device is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("teacher_device: FSDP and DeepSpeed keep a teacher where they shard it; leave it out")
        if args.teacher_freeze_below is not None and kind not in ("ema", "sync"):
            raise ValueError(f"teacher_freeze_below: a {kind} teacher follows no one; use teacher: ema or sync")
        batch, steps = self.args.steps_per_generation * self.num_iterations, args.teacher_sync_steps or 0
        if kind == "sync" and steps * args.gradient_accumulation_steps % batch:
            raise ValueError(
                f"teacher_sync_steps: {steps} would change the teacher within a generation batch, which lasts "
                f"{batch} micro-batches ({args.gradient_accumulation_steps} a step); give a multiple"
            )
        return SelfTeacher(
            self.model,
            kind,
            self.method.teacher_rate if args.teacher_rate is None else args.teacher_rate,
            self._prepared_teacher,
            sync_steps=args.teacher_sync_steps,
            base_weight=args.teacher_base_weight,
            dtype=None if args.teacher_dtype is None else getattr(torch, args.teacher_dtype),
            device=args.teacher_device,
            seed=args.seed,
        )

    def _prepared_teacher(self, teacher: Any) -> Any:
        accept_head_function(teacher)
        return self.prepare_teacher(teacher, stays=self.args.teacher_device is not None)

    # -- one generation batch -------------------------------------------------------------------------------------

    def on_rollouts(self, inputs: list[dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
        mask = _generated(batch)
        stage = self.experience.stage
        local = self._rollouts_of(inputs, mask)
        if self.method.needs_entropy(stage):
            entropy = self._scored(batch, None).student_entropy
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
        self._log_health(groups, contexts)

        states = self._teach(contexts_here, rendered, batch)
        device = mask.device
        rates = [self.experience.rate(r.problem_id) for r in local]
        nan = float("nan")
        batch |= {
            "rollout": torch.arange(len(local), device=device),
            "group": torch.tensor([r.index // self.num_generations for r in local], device=device),
            "reward": torch.tensor([nan if r.reward is None else r.reward for r in local], device=device),
            "available": torch.tensor([c.informs for c in contexts_here], device=device),
            "has_teacher": torch.tensor([s is not None for s in states], device=device),
            "pass_rate": torch.tensor(rates, device=device),
            "stage": torch.tensor(stage),
            "teacher_states": states,
        }
        if not self._scores_in_place:
            batch |= self._decide(batch, self._scored(batch, states) if self.method.needs_scores else None)
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
                prompt=row["prompt"],
                completion=recorders[0].texts[i],
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

    def _teach(
        self, contexts: list[TeacherContext], rendered: list[Rendered], batch: dict[str, Any]
    ) -> list[Tensor | None]:
        """The teacher's hidden states at each rollout's tokens, one forward for each that has a context."""
        wanted = [i for i, c in enumerate(contexts) if c.informs and c.needed and not rendered[i].dropped]
        states: list[Tensor | None] = [None] * len(contexts)
        if self.teacher is None:
            return states
        # A sharded model's forward is a collective: there every process runs all its rows in equal batches.
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        rows = list(range(len(contexts))) if sharded else wanted
        lengths = batch["completion_mask"].sum(1).tolist()
        completions = [batch["completion_ids"][i, : lengths[i]].tolist() for i in rows]
        sequences = teacher_sequences(self.encode_prompts([rendered[i].prompt for i in rows]), completions)
        by_part = []
        for part in range(self.teacher.parts):
            with self.teacher.acting(self.model, part) as model:

                def run(model_inputs: dict[str, Any], model: Any = model) -> Tensor:
                    with self.accelerator.autocast():
                        hidden: Tensor = model(**model_inputs, with_head=lambda hidden, head: hidden)
                    return hidden

                found, padding = hidden_at_completions(
                    run,
                    sequences,
                    max_rows=self.args.per_device_train_batch_size,
                    device=batch["completion_ids"].device,
                )
            by_part.append(found)
        for i, state in zip(rows, self.teacher.join(by_part), strict=True):
            states[i] = state if i in set(wanted) else None
        if wanted:
            self.log_metric("teacher/padding", padding)
        return states

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
    def _scored(self, batch: dict[str, Any], states: list[Tensor | None] | None) -> TokenScores:
        """Scores of this process's generation batch by the student as it stands, in micro-batches."""
        size = self.args.per_device_train_batch_size
        mask = _generated(batch)
        parts = []
        with compat.no_checkpointing(self):
            for start in range(0, len(mask), size):
                rows = slice(start, start + size)
                tokens, keep = batch["completion_ids"][rows], mask[rows]
                part_states = states[rows] if states is not None else None

                def on_head(
                    hidden: Tensor,
                    head: Any,
                    tokens: Tensor = tokens,
                    keep: Tensor = keep,
                    part_states: list[Tensor | None] | None = part_states,
                ) -> TokenScores:
                    hidden = at_completion(hidden, tokens.shape[1])
                    teacher_head = head if part_states is None else self._teacher_head(head)
                    return self._token_scores(hidden, head, teacher_head, tokens, keep, part_states)

                inputs = completion_inputs(
                    batch["prompt_ids"][rows], batch["prompt_mask"][rows], tokens, batch["completion_mask"][rows]
                )
                with self.accelerator.autocast():
                    parts.append(self.model(**inputs, with_head=on_head))
        return TokenScores._make(None if f[0] is None else torch.cat(f) for f in zip(*parts, strict=True))

    def _token_scores(
        self,
        hidden: Tensor,
        head: Head,
        teacher_head: Head,
        tokens: Tensor,
        mask: Tensor,
        states: list[Tensor | None] | None,
    ) -> TokenScores:
        if states is None:
            return token_scores(hidden, head, None, None, tokens, mask=mask, temperature=self.temperature)
        return token_scores(
            hidden,
            head,
            padded_states(states, tokens.shape[1], hidden, width=teacher_head.weight.shape[1]),
            teacher_head,
            tokens,
            mask=mask,
            teacher_mask=mask & _has_state(states, mask),
            **self._score_options(),
        )

    def _teacher_head(self, student_head: Head) -> Head:
        """Once a micro-batch, and on every process: a sharded one is gathered here."""
        return student_head if self.teacher is None else self.teacher.head(student_head, head_of)

    def _decide(self, batch: dict[str, Any], scores: TokenScores | None) -> dict[str, Any]:
        """The method's signals for this process's rollouts, decided over the rollouts of all processes."""
        everyone = self._gathered
        mask = everyone(_generated(batch))
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
        )
        signals = self.method.signals(whole)
        for name, value in signals.metrics.items():
            self.log_metric(name, value)
        count = mask.sum().float()
        n_rl, n_sd = count, count
        if self.method.denominators == "routed":
            n_rl, n_sd = (signals.rl_weight > 0).sum().float(), (signals.sd_weight > 0).sum().float()
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
        tokens, mask = inputs["completion_ids"], _generated(inputs)
        states = inputs["teacher_states"]

        teacher_head: list[Head] = []

        def on_head(hidden: Tensor, head: Head) -> tuple[Tensor, TokenScores]:
            teacher_head.append(self._teacher_head(head))
            hidden = at_completion(hidden, tokens.shape[1])
            if "rl_weight" not in inputs:
                scores = None
                if self.method.needs_scores:
                    with torch.no_grad():
                        scores = self._token_scores(hidden.detach(), head, teacher_head[0], tokens, mask, states)
                inputs.update(self._decide(inputs, scores))
            return self._loss(hidden, head, teacher_head[0], tokens, mask, inputs)

        student = completion_inputs(inputs["prompt_ids"], inputs["prompt_mask"], tokens, inputs["completion_mask"])
        with self.accelerator.autocast():
            loss, scores = model(**student, with_head=on_head)
        self._log_scores(scores, inputs, mask)
        if self.accelerator.is_main_process:
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # one process alone cannot gather a head
            self.rollout_log.write(
                self.state.global_step + 1,
                inputs,
                scores,
                mask,
                *self.batch_records,
                top_tokens=None if sharded else lambda row: top_tokens(states[row], teacher_head[0], 4),
            )
        return loss  # type: ignore[no-any-return]

    def _loss(
        self, hidden: Tensor, head: Head, teacher_head: Head, tokens: Tensor, mask: Tensor, inputs: dict[str, Any]
    ) -> tuple[Tensor, TokenScores]:
        rl_weight = inputs["rl_weight"] * self._token_weights(mask, inputs["rl_weight"], inputs["n_rl"])
        sd_weight = inputs["sd_weight"] * self._token_weights(mask, inputs["sd_weight"], inputs["n_sd"])
        if "importance_sampling_ratio" in inputs:  # vLLM sampled with slightly other probabilities
            rl_weight = rl_weight * inputs["importance_sampling_ratio"]
            sd_weight = sd_weight * inputs["importance_sampling_ratio"]
        has_states = any(s is not None for s in inputs["teacher_states"])
        teacher_hidden = None
        if has_states:
            teacher_hidden = padded_states(
                inputs["teacher_states"], tokens.shape[1], hidden.detach(), width=teacher_head.weight.shape[1]
            )
        m = self.method
        loss, scores = fused_loss(
            hidden,
            head,
            teacher_hidden,
            teacher_head if has_states else None,
            tokens,
            advantage=inputs["advantage"],
            rl_weight=rl_weight,
            sd_weight=sd_weight if has_states else None,
            old_logp=inputs.get("old_per_token_logps"),
            mask=mask,
            teacher_mask=mask & _has_state(inputs["teacher_states"], mask),
            surrogate=m.surrogate,
            clip_low=self.epsilon_low,
            clip_high=self.epsilon_high,
            importance_clip=m.importance_clip,
            token_clip=m.token_clip,
            **self._score_options(),
        )
        return loss, scores

    def _token_weights(self, mask: Tensor, weight: Tensor, count: Tensor) -> Tensor:
        """(B,T): what each token's loss is divided by, as TRL's ``loss_type`` says, over the tokens a stream counts."""
        training = self.model.training
        steps = self.current_gradient_accumulation_steps if training else 1
        counted = mask if self.method.denominators == "shared" else weight > 0
        # The count spans the generation batch of all processes; the optimizer averages over processes and micro-batches.
        total = count / self.accelerator.num_processes * steps / self.args.steps_per_generation
        return token_weights(
            counted, self.loss_type, total=total, max_length=self.max_completion_length, accumulation=steps
        )

    # -- health ---------------------------------------------------------------------------------------------------

    def _log_health(self, groups: list[Group], contexts: list[TeacherContext]) -> None:
        judged = [r for g in groups for r in g if r.reward is not None]
        solved = [sum((r.reward or 0) >= self.method.success_threshold for r in g) for g in groups]
        everyone = len(contexts)
        self.log_metric("groups/solve_all", sum(s == len(g) for s, g in zip(solved, groups, strict=True)) / len(groups))
        self.log_metric("groups/solve_none", sum(s == 0 for s in solved) / len(groups))
        self.log_metric("rollouts/unjudged", 1 - len(judged) / everyone)
        if self.method.uses_teacher:
            kinds = Counter(c.kind for c in contexts)
            for kind in sorted({*self.method.sources, "none", *kinds}):
                self.log_metric(f"context/{kind}", kinds[kind] / everyone)
        for name, value in self.experience.metrics().items():
            self.log_metric(name, value)

    @torch.no_grad()
    def _log_scores(self, scores: TokenScores, inputs: dict[str, Any], mask: Tensor) -> None:
        taught = mask & inputs["has_teacher"][:, None]
        rendered = self.batch_records[2]

        def total(values: Tensor | None, where: Tensor) -> list[Tensor]:
            return [where.new_zeros((), dtype=torch.float32) if values is None else (values * where).sum(), where.sum()]

        gap = None if scores.teacher_logp is None else scores.teacher_logp - scores.student_logp
        named = {
            "entropy": total(scores.student_entropy, mask),
            "teacher/entropy": total(scores.teacher_entropy, taught),
            "teacher/gap": total(gap, taught),
            "teacher/divergence": total(scores.divergence, taught),
        }
        old = inputs.get("old_per_token_logps")
        if old is not None:
            ratio = (scores.student_logp - old).exp()
            advantage = inputs["advantage"]
            clipped = ((ratio < 1 - self.epsilon_low) & (advantage < 0)) | (
                (ratio > 1 + self.epsilon_high) & (advantage > 0)
            )
            named["clip_ratio/region_mean"] = total(clipped.float(), mask)
        sums = self.accelerator.reduce(
            torch.stack([x.float() for pair in named.values() for x in pair]), reduction="sum"
        ).view(-1, 2)
        for name, (value, count) in zip(named, sums.tolist(), strict=True):
            if count:
                self.log_metric(name, value / count)
        if self.method.uses_teacher:
            self.log_metric("context/cut", sum(bool(r.cut) for r in rendered) / len(rendered))
            self.log_metric("context/dropped", sum(r.dropped for r in rendered) / len(rendered))

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
        if self.args.should_save:
            (folder / "state.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
            if self.teacher is not None:
                self.teacher.save(folder)

    def load_state(self, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self.experience.load_state_dict(state["experience"])
        self.evaluator.load_state_dict(state["evaluator"])
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


def _generated(batch: dict[str, Any]) -> Tensor:
    """(B,T) bool: completion tokens the student itself generated."""
    mask: Tensor = batch["completion_mask"]
    return (mask if "tool_mask" not in batch else mask * batch["tool_mask"]).bool()


def _has_state(states: list[Tensor | None], mask: Tensor) -> Tensor:
    return torch.tensor([s is not None for s in states], device=mask.device)[:, None]
