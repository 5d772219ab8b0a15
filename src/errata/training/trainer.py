"""``ErrataTrainer``: TRL's GRPO trainer that learns from rich feedback. It knows no method by name.

A step, in order: TRL samples and judges; rollouts are built and, where the recipe asks, commented on; the method's memory
observes the groups of all processes and its contexts are chosen; the teacher pass; scores; the method's signals; the
two-stream loss; metrics and logs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from errata import methods
from errata.contexts import DEFAULT, Rendered, Renderer
from errata.experts import Access, Teacher
from errata.experts.access import check_temperature
from errata.experts.adapters import check_adapter
from errata.methods import Method, TeacherMethod
from errata.ops.scores import Head, Objective, TokenScores
from errata.recipe import models
from errata.recipe.config import ErrataConfig
from errata.records import Group, Messages, Prompt, Rollout, Row, TeacherContext, Verdict, fitting, groups_of
from errata.training import compat
from errata.training.batch import GenerationBatch, LocalSignals, TeacherOutputs, TokenBatch
from errata.training.comments import comments_of
from errata.training.environments import Reader, guard_worlds
from errata.training.evaluation import Evaluator
from errata.training.finite import StopAtBadWeights, check_loss
from errata.training.forward import accept_head_function, at_completion, check_router_loss, check_scores
from errata.training.guard import Guard, check_guard
from errata.training.hub import Publishing
from errata.training.loss import Averaging, LossSettings, two_stream_loss
from errata.training.metrics import StepMeans, batch_metrics, metrics_by_task, prompt_metrics, score_sums, tasks_of
from errata.training.padding import packs
from errata.training.references import check_references
from errata.training.replay import PastBatch, Replay
from errata.training.rollout_log import Likeliest, RolloutLog, WriteRow, within_limit, write_evaluation
from errata.training.rollouts import Completion, Judges, Verifier, build_rollouts
from errata.training.scoring import Scorer
from errata.training.signals import checked_context, decide, naming
from errata.training.teacher_pass import Expert, Place, StatefulExpert, TeacherPass
from errata.training.teachers import MakeTeacher, self_teacher

_HEAD = "generation_head.pt"
"""File of the head that reads the generation batch's teacher states, in a checkpoint that falls inside a generation batch."""

_FSDP1 = (
    "FSDP1 flattens the weights of another model, so that its output head cannot be read; use FSDP2 (fsdp_version: 2)"
)
_FSDP1_LORA = "use_peft: FSDP1 saves an adapter without its weights, so no run resumes; use FSDP2 (fsdp_version: 2)"


class ErrataTrainer(Publishing):
    """TRL's GRPO trainer with a method, teachers and verdicts.

    Args:
        model: a Hugging Face causal language model or what ``from_pretrained`` takes.
        verifiers: callables judging completions; any TRL reward function will do.
        args: settings.
        method: a decision (``errata.methods.get``).
        train_dataset: rows with ``prompt`` and ``problem_id``; ``reference`` where there is one.
        eval_dataset: rows of the same form for ``evaluate``.
        expert: makes the teacher where that is not the policy itself, given a function that prepares a model for the run's
            parallelism; it returns a ``Teacher``, or an ``Expert`` that answers queries.
        access: how much of the expert's distribution is known, and where; all of it unless given.
        context_methods: by task or environment (``errata.records.fitting``), the method whose settings choose the contexts of
            its rows; ``method`` for all other rows.
        run: called with a file's stem (``rollouts``, ``eval``) and a row to keep it in the run directory.
        kwargs: passed to TRL's trainer: processing_class, peft_config, callbacks, tools, environment_factory, ...
    Raises:
        ValueError: settings that contradict each other, or a model that errata cannot score.
    """

    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel | str,
        verifiers: Sequence[Verifier],
        args: ErrataConfig,
        *,
        method: Method,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        run: WriteRow = lambda stem, row: None,
        expert: MakeTeacher | None = None,
        access: Access | None = None,
        context_methods: Mapping[str, Method] | None = None,
        **kwargs: Any,
    ) -> None:
        self._own_trl_loss = compat.options_beyond_clipping(args)
        if self._own_trl_loss and not method.trl_loss:
            raise ValueError(
                f"{', '.join(self._own_trl_loss)}: the loss of {type(method).__name__} is not TRL's and has no such option; "
                "leave it at TRL's default (loss_type: dapo, grpo, bnpo or dr_grpo) or use method: grpo"
            )
        if method.learns_from == "reference":
            check_references(method, args, train_dataset, kwargs)
        reader = Reader.of(model, kwargs.get("processing_class"), args.max_completion_length)
        guard_worlds(kwargs, args.environment_timeout_s, reader)
        self.method = method
        self._context_methods = dict(context_methods or {})
        with naming(method, "memory"):
            self.memory = method.memory()
        self._judges = Judges(verifiers, timeout_s=args.verifier_timeout_s, apart=args.verifier_isolation == "process")
        check_adapter(model, reference=args.beta != 0.0)
        super().__init__(
            model=model,
            reward_funcs=list(self._judges.functions),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        # An environment that owns its reward (`get_reward`) was added by TRL: one more verifier, with all a verdict may say.
        for i in range(len(self._judges.functions), len(self.reward_funcs)):
            self._judges.add(self.reward_funcs[i])
            self.reward_funcs[i] = self._judges.functions[i]
        check_adapter(self.model)  # TRL may have loaded it, or added one
        policy = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        accept_head_function(policy, **self._padding(policy))
        if self.fsdp1 and policy is not self.model:
            raise ValueError(_FSDP1_LORA)
        if not self.sharded:
            check_scores(policy)
            if self.aux_loss_enabled:
                check_router_loss(policy)
        made = self._make_teacher(expert)
        self.teacher = made if isinstance(made, Teacher) else None
        self.expert: Expert | None = None if isinstance(made, Teacher) else made
        if isinstance(theirs := getattr(self.expert, "temperature", None), int | float):
            check_temperature((access or Access()).gives, theirs, self.temperature)
        with naming(method, "objective"):
            objective = method.objective()
        if not isinstance(objective, Objective):
            raise ValueError(
                f"{type(method).__name__}.objective: must return errata.ops.scores.Objective, got {type(objective).__name__}"
            )
        objective = replace(objective, clip_low=self.epsilon_low, clip_high=self.epsilon_high)
        routed = isinstance(method, TeacherMethod) and method.denominators == "routed"
        # A reference was not sampled: its likelihood is the policy's own, at temperature 1.
        temperature = 1.0 if method.learns_from == "reference" else self.temperature
        self._loss_settings = LossSettings(objective, temperature, routed)
        self._by_reward = methods.get("grpo", success_threshold=method.success_threshold)
        of_reward = replace(self._by_reward.objective(), clip_low=self.epsilon_low, clip_high=self.epsilon_high)
        self._reward_loss_settings = LossSettings(of_reward, self.temperature, False)
        self._scorer = Scorer(
            self.accelerator, self.sharded, objective.divergence, self.temperature, args.per_device_train_batch_size
        )
        self.teacher_pass = TeacherPass(
            self.teacher,
            self.expert,
            access or Access(),
            self.accelerator,
            self.sharded,
            self._encode_teacher_prompts,
            self._scorer,
            self.temperature,
            args.per_device_train_batch_size,
            self_on_failure=args.expert_on_failure == "self",
            keeps_head=args.gradient_accumulation_steps % (args.steps_per_generation * self.num_iterations) != 0,
        )
        self.replay = self._make_replay()
        longest = models.longest_prompt(self.model, args.max_completion_length)
        wording = method.context_template if isinstance(method, TeacherMethod) else DEFAULT
        self.renderer = Renderer(
            wording if args.context_template is None else args.context_template,
            default=wording,
            max_tokens=longest if args.max_teacher_prompt_length is None else args.max_teacher_prompt_length,
            count_tokens=self._tokens_of,
            history=isinstance(method, TeacherMethod) and method.history > 0,
        )
        self.comments = comments_of(
            args,
            method,
            getattr(train_dataset, "column_names", None) or (),
            self.accelerator,
            self.tokenizer,
            self._write_by_policy,
        )
        self._tasks = tasks_of(train_dataset)
        self.evaluator = Evaluator(
            args, method, self.renderer, self.teacher, self.sharded, self.context_method, tasks_of(eval_dataset)
        )
        self._means = StepMeans()
        self._keep_row = run
        self._rollout_log = RolloutLog(run, self.tokenizer, args.rollouts_saved, method.success_threshold)
        self.add_callback(StopAtBadWeights())  # before a teacher follows them
        self.add_callback(_AfterStep(self))
        evaluates = args.eval_strategy != "no" and bool(args.eval_on_start)
        check_guard(args.guard, method, self.teacher, sharded=self.sharded, evaluates=evaluates)
        self.guard = Guard(self, args.guard, Path(str(args.output_dir)), args.eval_k, lambda row: run("guard", row))
        self.add_callback(self.guard)

    def _make_teacher(self, expert: MakeTeacher | None) -> Teacher | Expert | None:
        if not isinstance(self.method, TeacherMethod):
            return None

        def prepare(teacher: nn.Module) -> nn.Module:
            accept_head_function(teacher, **self._padding(teacher))
            prepared: nn.Module = self.prepare_teacher(teacher, stays=self.args.teacher_device is not None)
            return prepared

        if expert is not None:
            made = expert(prepare)
            if self.fsdp1 and isinstance(made, Teacher):
                raise ValueError(f"expert: {_FSDP1}")
            return made
        per_generation = self.args.steps_per_generation * self.num_iterations
        teacher = self_teacher(self.model, self.args, self.method, prepare, per_generation, self.sharded)
        if self.fsdp1 and teacher.separate is not None:
            raise ValueError(f"teacher: {_FSDP1}, or teacher: live")
        return teacher

    def _padding(self, model: PreTrainedModel) -> dict[str, bool]:
        """How padding is left out of this model's forwards."""
        free = self.args.padding_free
        # Processes whose forwards are collectives must call them equally often.
        return {"packed": free and packs(model), "grouped": free and not self.sharded}

    def _tokens_of(self, prompt: Messages | str) -> int:
        """Tokens of a teacher's prompt; an upper bound of them where that alone is below the model's limit."""
        size = len(str(prompt).encode("utf-8", "replace"))
        longest = models.longest_prompt(self.model, self.args.max_completion_length)
        if self.args.max_teacher_prompt_length is None and longest is not None and size <= models.fewest_bytes(longest):
            return size
        return len(self._encode_teacher_prompts([prompt])[0])

    def _encode_teacher_prompts(
        self, prompts: list[Messages | str], environments: Sequence[str | None] | None = None
    ) -> list[list[int]]:
        method = self.method
        template_kwargs = method.teacher_chat_template_kwargs if isinstance(method, TeacherMethod) else {}
        return self.encode_prompts(prompts, template_kwargs, environments)

    def _make_replay(self) -> Replay | None:
        method, args = self.method, self.args
        if not isinstance(method, TeacherMethod) or args.replay_capacity is None:
            return None
        if self.zero3 and self.teacher is not None and self.teacher.separate is None:
            raise ValueError(
                "replay_capacity: with a teacher that is the policy itself (live, or with LoRA) ZeRO-3 frees weights which the "
                "backward pass of the replayed rollouts reads; use FSDP2, ZeRO-2 or a teacher with weights of its own"
            )
        return Replay(
            args.replay_capacity,
            args.replay_share,
            args.replay_limit,
            divergence=method.divergence,
            tail=self.teacher_pass.access.gives != "samples",
            temperature=self.temperature,
            pad=self.tokenizer.pad_token_id,
        )

    def _write_by_policy(self, prompts: list[Messages], max_tokens: int) -> list[list[int]]:
        return self.write(prompts, temperature=self.temperature, top_p=self.top_p, max_tokens=max_tokens)

    # -- one generation batch -------------------------------------------------------------------------------------

    @property
    def _decides_in_loss(self) -> bool:
        """Whether the one micro-batch is the whole generation batch, used once: then its own forward can be scored."""
        return bool(self.args.steps_per_generation == 1 and self.num_iterations == 1)

    def targets(self, rows: Sequence[Row]) -> list[list[int]] | None:
        if self.method.learns_from == "rollouts":
            return None
        texts = [row["reference"] for row in rows]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[*i, self.turn_end][: self.max_completion_length] for i in ids]

    def on_rollouts(self, rows: Sequence[Row], tokens: TokenBatch) -> GenerationBatch:
        """From sampled and judged completions to the batch that the losses of its micro-batches take."""
        if self.method.learns_from == "reference":
            tokens = replace(tokens, old_logp=None, sampler_ratio=None)  # nothing was sampled, so there is no ratio
        first, step = self.accelerator.process_index * len(rows), self.state.global_step
        self._judges.check([str(row["problem_id"]) for row in rows])
        local = self._build(rows, tokens, first)
        reward_only = self.guard.reward_only
        if not reward_only:
            local, metrics = self.comments(local, rows, step)
            self.log_metrics_of_step(metrics)
            if self.method.needs_entropy(self.memory):
                local = self._with_entropy(local, tokens)
        everyone: list[Rollout] = gather_object(local)
        groups = groups_of(everyone, self.num_generations)
        contexts = self._choose_contexts(groups, step)
        if reward_only:
            contexts = [TeacherContext("none", "the guard has turned the teacher off")] * len(everyone)
        mine = contexts[first : first + len(local)]
        prompts = [
            replace(
                self.renderer.render(r, c) if c.is_informative and c.use_teacher else Rendered(r.prompt),
                environment=r.row.get("environment"),
            )
            for r, c in zip(local, mine, strict=True)
        ]
        self.log_metrics_of_step(batch_metrics(self.method, groups, contexts))
        self.log_metrics_of_step(metrics_by_task(groups, self._tasks, self.method.success_threshold))
        self.log_metrics_of_step(self.memory.metrics())
        batch = GenerationBatch(
            local,
            mine,
            prompts,
            tokens,
            TeacherOutputs.none(len(local)),
            everyone=everyone,
            all_contexts=contexts,
            reward_only=reward_only,
        )
        if self._method_of(batch).uses_teacher:
            place = Place(self.args.seed, step, first)
            outputs, metrics = self.teacher_pass(self.model, tokens, mine, prompts, place, self.no_checkpointing)
            self.log_metrics_of_step(metrics)
            batch = replace(batch, teacher=outputs)
        return batch if self._decides_in_loss else replace(batch, signals=self._decide_ahead(batch))

    def sampled_logp(self, tokens: TokenBatch) -> Tensor | None:
        if self._own_trl_loss:
            return None
        return self._scorer(self.model, tokens, ["student_logp"], no_checkpointing=self.no_checkpointing()).student_logp

    def _build(self, rows: Sequence[Row], tokens: TokenBatch, first: int) -> list[Rollout]:
        weights = [float(w) for w in self.reward_weights]
        recorder = self._judges.recorders[0] if self._judges.recorders else None
        # An environment adds what it shows at its reset to the prompt.
        prompts = recorder.prompts if recorder and self.environment_factories else [row["prompt"] for row in rows]
        if recorder is not None:
            completions = recorder.completions
        else:  # reward models alone
            texts = self.tokenizer.batch_decode(tokens.completion_ids, skip_special_tokens=True)
            completions = list(texts)
        verdicts = self._judges.verdicts(self.local_scores, weights)
        indices = range(first, first + len(rows))
        return build_rollouts(rows, prompts, completions, verdicts, self.sampled_lengths, indices)

    def judge(
        self, rows: Sequence[Row], prompts: list[Prompt], completions: list[Completion], ids: list[list[int]]
    ) -> list[Verdict]:
        """Verdicts as in training. Collective: call on every rank, with equally many rows."""
        scores = self.judged_scores(rows, prompts, completions, ids)
        self._judges.check([str(row["problem_id"]) for row in rows])
        return self._judges.verdicts(scores, [float(w) for w in self.reward_weights])

    def _with_entropy(self, rollouts: Sequence[Rollout], tokens: TokenBatch) -> list[Rollout]:
        scores = self._scorer(self.model, tokens, ["student_entropy"], no_checkpointing=self.no_checkpointing())
        means = (scores.student_entropy.sum(1) / tokens.mask.sum(1).clamp(min=1)).tolist()
        return [replace(r, entropy=e) for r, e in zip(rollouts, means, strict=True)]

    def _choose_contexts(self, groups: list[Group], step: int) -> list[TeacherContext]:
        """Contexts of the rollouts of all processes, after the memory's update: the same on every process."""
        rng = random.Random(f"{self.args.seed}-{step}")
        epoch = float(self.state.epoch or 0.0)
        with naming(self.method, "memory"):
            self.memory.observe(groups, step=step)
        with naming(self.method, "context"):
            found = [
                self.context_method(r).context(r, g, memory=self.memory, epoch=epoch, rng=rng)
                for g in groups
                for r in g
            ]
        return [checked_context(self.method, context) for context in found]

    def context_method(self, rollout: Rollout) -> Method:
        """The method whose settings choose this rollout's context."""
        name = fitting(rollout.row, self._context_methods)
        return self.method if name is None else self._context_methods[name]

    def _method_of(self, batch: GenerationBatch) -> Method:
        """The run's method, or GRPO where the guard has turned the teacher off."""
        return self._by_reward if batch.reward_only else self.method

    def _decide_ahead(self, batch: GenerationBatch) -> LocalSignals:
        """Signals by a scoring of their own, for a batch that is learned from in parts or several times."""
        method = self._method_of(batch)

        def score(at: Tensor) -> TokenScores:
            return self._scorer(
                self.model,
                batch.tokens,
                method.score_fields,
                batch.teacher if method.uses_teacher else None,
                self.teacher_pass.reader,
                at=at,
                no_checkpointing=self.no_checkpointing(),
            )

        signals, metrics = decide(method, self.memory, batch, score, self.accelerator, self.num_generations)
        self.log_metrics_of_step(metrics)
        return signals

    # -- one micro-batch ------------------------------------------------------------------------------------------

    def batch_loss(self, model: nn.Module, rows: Tensor, trl_loss: Callable[[], Tensor]) -> Tensor:
        """The two-stream loss of one micro-batch; TRL's own where its options ask for more than the clipped surrogate."""
        batch: GenerationBatch = self.generation.select(rows.cpu())
        if self._own_trl_loss:
            trls: Tensor = trl_loss()
            self._write_rollouts(replace(batch, signals=batch.signals or self._decide_ahead(batch)), None)
            return trls
        place = f"{(self.args.seed, self.state.global_step, self.micro_step, self.accelerator.process_index)}"
        past = None if self.replay is None or batch.reward_only else self.replay.draw(batch.tokens, place)
        heads: list[Head] = []  # kept aside: what a wrapped model returns may be copied in another type
        decided: list[tuple[LocalSignals, Tensor | None]] = []

        def on_head(hidden: Tensor, head: Head) -> tuple[Tensor, TokenScores]:
            heads.append(head)
            loss, scores, signals, reach = self._loss_of_hidden(hidden, head, batch, past)
            decided.append((signals, reach))
            return loss, scores

        inputs = batch.tokens.model_inputs() if past is None else Replay.joined(batch.tokens, past)
        loss: Tensor
        balance = {"router_loss": True} if self.aux_loss_enabled else {}
        with self.accelerator.autocast():
            loss, scores, *router = model(**inputs, with_head=on_head, **balance)
        for value in router:
            loss = loss + self._router_loss(value)
        signals, reach = decided[0]
        batch = replace(batch, signals=signals)
        check_loss(loss.detach(), batch, scores, self.state.global_step + 1)
        self._after_loss(batch, scores, heads[0], reach)
        return loss

    def _loss_of_hidden(
        self, hidden: Tensor, head: Head, batch: GenerationBatch, past: PastBatch | None
    ) -> tuple[Tensor, TokenScores, LocalSignals, Tensor | None]:
        """The loss, its scores, the signals, and the reach of past rollouts."""
        method, reach = self._method_of(batch), None
        settings = self._reward_loss_settings if batch.reward_only else self._loss_settings
        if past is None:
            own, of_past = at_completion(hidden, batch.tokens.mask.shape[1]), None
        else:
            own, of_past = Replay.split(hidden, batch.tokens, past)
        teacher = None
        if bool(batch.teacher.has_teacher.any()) or (self.sharded and method.uses_teacher):
            teacher = self.teacher_pass.reader.values(batch.teacher, own, head, batch.tokens.mask)
        signals = batch.signals

        def decide_here(scores: TokenScores) -> LocalSignals:
            nonlocal signals
            signals, metrics = decide(
                method, self.memory, batch, lambda at: scores, self.accelerator, self.num_generations
            )
            self.log_metrics_of_step(metrics)
            return signals

        if signals is None and self._scores_in_part(method):
            signals = self._decide_in_part(own, head, batch)
        averaging = self._averaging
        loss, scores = two_stream_loss(own, head, batch, teacher, signals or decide_here, settings, averaging)
        assert signals is not None
        if past is not None and self.replay is not None and of_past is not None:
            among = settings.counted(batch.tokens.mask, signals.sd_weight)
            weights = averaging.weights(past.mask, signals.sd_count.clamp(min=1), among)
            more, reach = self.replay.loss(of_past, head, past, weights)
            loss = loss + more
        return loss, scores, signals, reach

    def _router_loss(self, value: Tensor) -> Tensor:
        """A micro-batch's share of the loss that keeps the experts of an MoE model equally busy, as TRL adds and logs it."""
        self.log_metrics_of_step({"aux_loss": float(self.accelerator.gather(value.detach()).mean())})
        return value * (float(self.router_aux_loss_coef) / self._averaging.accumulation)

    @staticmethod
    def _scores_in_part(method: Method) -> bool:
        """Whether fewer products than the loss's own suffice for what the method reads."""
        return not {"student_logp", "student_entropy", "divergence"} & {*method.score_fields}

    def _decide_in_part(self, hidden: Tensor, head: Head, batch: GenerationBatch) -> LocalSignals:
        """Signals of a method that reads none of the student's scores."""
        method = self._method_of(batch)

        def score(at: Tensor) -> TokenScores:
            return self._scorer.of_hidden(
                hidden.detach(),
                head,
                batch.tokens,
                method.score_fields,
                batch.teacher if method.uses_teacher else None,
                self.teacher_pass.reader,
                at=at,
            )

        signals, metrics = decide(method, self.memory, batch, score, self.accelerator, self.num_generations)
        self.log_metrics_of_step(metrics)
        return signals

    @property
    def _averaging(self) -> Averaging:
        return Averaging(
            self.loss_type,
            self.max_completion_length,
            self.current_gradient_accumulation_steps if self.model.training else 1,
            self.args.steps_per_generation,
            self.accelerator.num_processes,
        )

    def _after_loss(self, batch: GenerationBatch, scores: TokenScores, head: Head, reach: Tensor | None) -> None:
        """Metrics, replay and rollouts.jsonl. ``reach``: of ``Replay.loss``."""
        samples_only = self.teacher_pass.access.gives == "samples"
        settings = self._reward_loss_settings if batch.reward_only else self._loss_settings
        self._means.add(score_sums(batch, scores, teacher_known=not samples_only, objective=settings.objective))
        if self.accelerator.sync_gradients:  # the step's last micro-batch
            self.log_metrics_of_step(self._means.take(self.accelerator))
        if self.method.uses_teacher:
            self.log_metrics_of_step(prompt_metrics(self.generation.prompts))
        if self.replay is not None and not batch.reward_only:
            self.log_metrics_of_step(self.replay.metrics(self.accelerator, reach))
            # Gathered on every process or on none, where it is sharded.
            with_states = batch.teacher.sparse is None
            self.replay.keep(batch, scores, self.teacher_pass.reader.head(batch.teacher, head) if with_states else None)
        self._write_rollouts(
            batch,
            scores._replace(teacher_logp=None, teacher_entropy=None) if samples_only else scores,
            # One process alone cannot gather a sharded head.
            None if self.sharded else lambda row: self.teacher_pass.likeliest(batch.teacher, row, head, 4),
        )

    def _write_rollouts(
        self, batch: GenerationBatch, scores: TokenScores | None, likeliest: Likeliest | None = None
    ) -> None:
        step, file = self.state.global_step + 1, Path(str(self.args.output_dir)) / "rollouts.jsonl"
        if self.accelerator.is_main_process and within_limit(
            file, self.args.rollouts_max_mb, step, self.state.max_steps
        ):
            self._rollout_log.write(step, batch, scores, self.generation.rollouts, likeliest)

    # -- evaluation and state -------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """avg@k and pass@k on the held-out rows, and the teacher's own accuracy in its contexts."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError(
                "eval_dataset: nothing to evaluate on; name a task with a test split or set eval_strategy: no"
            )
        metrics = self.evaluator(self, dataset)
        self.evaluation_due = False
        if self.accelerator.is_main_process:
            task, split = self.args.eval_task or self.args.task, self.args.eval_split
            step, k = self.state.global_step, self.args.eval_k
            self._keep_row("eval", {"step": step, "task": task, "split": split, **metrics})
            shown = self.evaluator.last_rollouts
            write_evaluation(self._keep_row, step, shown, k=k, problems=self.args.rollouts_saved)
        logged = {f"{metric_key_prefix}_{k}": v for k, v in metrics.items() if isinstance(v, int | float)}
        training = self.model.training
        self.model.eval()  # TRL files what is logged by the model's mode
        self.log(dict(logged))
        self.model.train(training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logged)
        return logged

    def saved_generation(self) -> GenerationBatch:
        # Its head may be as large as the rest, so the main process saves it for all.
        batch: GenerationBatch = self.generation
        return replace(batch, teacher=replace(batch.teacher, head=None))

    def save_state(self, folder: Path) -> None:
        state = {
            "memory": self.memory.state_dict(),
            "evaluator": self.evaluator.state_dict(),
            "judges": self._judges.state_dict(),
            "guard": self.guard.save(folder),
        }
        if self.teacher is not None:
            state["teacher"] = self.teacher.state_dict()
        if isinstance(self.expert, StatefulExpert):
            state["expert"] = self.expert.state_dict()
        if self.replay is not None:
            self.replay.save(folder, self.accelerator.process_index)
        if self.teacher is not None:
            self.teacher.save(folder, write=self.args.should_save)
        if self.args.should_save:
            if self.inside_generation and self.generation.teacher.head is not None:
                torch.save(self.generation.teacher.head, folder / _HEAD)  # the same on every process
            (folder / "state.json").write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")

    def load_state(self, folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self.memory.load_state_dict(state["memory"])
        self.evaluator.load_state_dict(state["evaluator"])
        self.guard.load(state.get("guard", {}), folder)
        self._judges.load_state_dict(state.get("judges", {"has_judged": []}))
        if (folder / _HEAD).is_file():
            head = torch.load(folder / _HEAD, map_location=self.accelerator.device, weights_only=False)
            self.generation = replace(self.generation, teacher=replace(self.generation.teacher, head=head))
        if self.replay is not None:
            self.replay.load(folder, self.accelerator.process_index)
        if "expert" in state and isinstance(self.expert, StatefulExpert):
            self.expert.load_state_dict(state["expert"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state.get("teacher", {}))
            self.teacher.load(folder)


class _AfterStep(TrainerCallback):  # type: ignore[misc]
    """Updates a teacher that follows the student after each optimizer step, and stops training after a signal."""

    def __init__(self, trainer: ErrataTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._trainer.evaluation_due:  # a signal ended it before the run was resumed
            self._trainer.evaluate()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        trainer = self._trainer
        if trainer.teacher is not None:
            trainer.teacher.update()
        trainer.note_step_end()
        if trainer.asked_to_stop():
            control.should_save = control.should_training_stop = True
