"""The only file that touches a private name of TRL. ``tests/training/test_compat.py`` pins their signatures.

``TRLHooks`` is TRL's GRPO trainer with its private extension points under public names: a subclass implements
``on_rollouts`` and ``batch_loss`` and sees no private name of TRL. The keys of TRL's batches are read here alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from trl import GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import RepeatSampler
from trl.trainer.utils import maybe_gather_lm_head_ctx as _gather

from errata.records import Messages, Prompt, Row, State
from errata.training import checkpoint as checkpoints
from errata.training import interrupt
from errata.training.batch import TokenBatch
from errata.training.conversation import begins_answer, converse, observed, reply_ids, talks
from errata.training.environments import Environment
from errata.training.randomness import EpochSampler, RandomState

PRIVATE = {
    "_generate_and_score_completions": ("self", "inputs"),
    "_compute_loss": ("self", "model", "inputs"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_get_per_token_logps_and_entropies": (
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        "compute_aux_loss",
    ),
    "_tokenize_prompts": ("self", "prompts"),
    "_generate": ("self", "prompts"),
    "_generate_single_turn": ("self", "prompt_ids", "images", "multimodal_fields", "num_generations"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_push_from_checkpoint": ("self", "checkpoint_folder"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_get_train_sampler": ("self", "dataset"),
    "_run_epoch": (
        *("self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
        *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
        "steps_trained_in_current_epoch",
    ),
}
"""Private methods used here, with the parameters they must have."""

Tokenized = tuple[list[list[int]], object, State]
"""Token ids of prompts, their images and further inputs of the model."""
Generated = tuple[
    list[list[int]],
    list[list[int]],
    list[list[int]] | None,
    list[Prompt],
    list[list[float]] | None,
    *tuple[object, ...],
]
"""Token ids of prompts and completions, 1 for each token that the policy wrote, completions, log-probs, and what TRL adds."""
Scored = tuple[Tensor, Tensor | None, Tensor | None]
"""Log-probs (B,T), entropies (B,T) and the loss of a mixture's routers."""

ROWS = "rollout"
"""The one key that errata adds to TRL's batches: (b,) which rollouts of the generation batch a micro-batch holds."""


def gathered(*parameters: Tensor | None) -> AbstractContextManager[None]:
    """A context in which a head that DeepSpeed ZeRO-3 has sharded is whole."""
    context: AbstractContextManager[None] = _gather(*[p for p in parameters if p is not None])
    return context


def token_batch(batch: Row) -> TokenBatch:
    """The token tensors of TRL's batch."""
    mask: Tensor = batch["completion_mask"]
    return TokenBatch(
        prompt_ids=batch["prompt_ids"],
        prompt_mask=batch["prompt_mask"],
        completion_ids=batch["completion_ids"],
        completion_mask=mask,
        mask=(mask if "tool_mask" not in batch else mask * batch["tool_mask"]).bool(),
        advantage=batch["advantages"],
        old_logp=batch.get("old_per_token_logps"),
        sampler_ratio=batch.get("importance_sampling_ratio"),
    )


def options_beyond_clipping(args: Any) -> list[str]:
    """Names of TRL's loss options whose values ask for more than the clipped surrogate, which errata's own loss computes."""
    plain = {
        "loss_type": args.loss_type in ("dapo", "grpo", "bnpo", "dr_grpo"),
        "importance_sampling_level": args.importance_sampling_level == "token",
        "beta": args.beta == 0.0,
        "delta": args.delta is None,
        "off_policy_mask_threshold": args.off_policy_mask_threshold is None,
        "top_entropy_quantile": args.top_entropy_quantile >= 1.0,
        "entropy_coef": args.entropy_coef == 0.0,
        "use_adaptive_entropy": not args.use_adaptive_entropy,
    }
    return [name for name, is_plain in plain.items() if not is_plain]


class Sampled(NamedTuple):
    """Completions, one per row."""

    prompts: list[Prompt]
    """What was asked, with what the environment showed at its reset."""
    completions: list[Prompt]
    """Texts or messages."""
    ids: list[list[int]]
    lengths: list[int]
    """Tokens that the policy itself generated."""


class Shown(NamedTuple):
    """Other prompts than the rows' own, one per row, and who answers them: a teacher in its contexts."""

    prompts: list[Prompt]
    model: nn.Module | None = None
    """Unwrapped; ``None``: the policy."""
    template_kwargs: Row = MappingProxyType({})
    """Arguments of the chat template, over the run's ``chat_template_kwargs``."""


class TRLHooks(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer, opened at the places errata needs."""

    generation: Any = None
    """The generation batch in use, whatever ``on_rollouts`` made of it; saved with a checkpoint that falls inside it."""
    _targets: list[list[int]] | None = None
    sampled_lengths: list[int]
    """(B,) tokens that the policy itself generated in this process's last completions, also of those that are masked because
    they were truncated."""
    local_scores: list[list[float]]
    """(B, number of reward functions) of this process's last judged completions, NaN where a function gave none."""
    evaluation_due: bool = False
    """An evaluation of the current policy has started and not finished. A checkpoint stores this."""
    stopped: bool = False
    """A signal ended training before its last step."""
    _at_step_end: RandomState | None = None
    _logging: State | None = None
    _resumed: bool = False

    # -- to be implemented ----------------------------------------------------------------------------------------

    def on_rollouts(self, rows: list[State], tokens: TokenBatch) -> object:
        """Called with the rows and tokens of a freshly sampled and judged generation batch, this process's part.

        What it returns is kept as ``generation``.
        """
        raise NotImplementedError

    def targets(self, rows: list[State]) -> list[list[int]] | None:
        """Completions, as token ids, that stand in training where sampled ones would; ``None``: sample."""
        return None

    def batch_loss(self, model: nn.Module, rows: Tensor, trl_loss: Callable[[], Tensor]) -> Tensor:
        """The loss of one micro-batch, already divided for gradient accumulation.

        Args:
            model: the student, wrapped.
            rows: (b,) which rollouts of the generation batch.
            trl_loss: TRL's own loss of this micro-batch, with all its options.
        """
        raise NotImplementedError

    def sampled_logp(self, tokens: TokenBatch) -> Tensor | None:
        """(B,T) log-probs of freshly sampled tokens under the policy, computed as ``batch_loss`` will; ``None``: as TRL does.

        Two ways of computing the same number differ by their rounding, in bfloat16 by .02 nats a token, and the ratio of old
        and new log-probs would be taken for a policy that has moved.
        """
        return None

    def saved_generation(self) -> object:
        """What of ``generation`` each process saves with a checkpoint that falls inside it."""
        return self.generation

    def save_state(self, folder: Path) -> None:
        """Write what must outlive the process; the checkpoint counts as complete only after this."""

    def load_state(self, folder: Path) -> None:
        """Restore what ``save_state`` wrote; ``generation`` is there already, if the checkpoint falls inside it."""

    # -- offered --------------------------------------------------------------------------------------------------

    @property
    def micro_step(self) -> int:
        """Which of an optimizer step's micro-batches this is."""
        return int(self._step) % int(self.args.gradient_accumulation_steps)

    @property
    def inside_generation(self) -> bool:
        """Whether further micro-batches of the generation batch are to come."""
        return bool(self._step % (self.args.steps_per_generation * self.num_iterations))

    @property
    def sharded(self) -> bool:
        """Whether the weights are whole only within a forward (FSDP, DeepSpeed)."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @property
    def fsdp1(self) -> bool:
        """Whether FSDP's first version shards the weights: as parts of flat tensors, whole only within a forward."""
        return bool(self.is_fsdp_enabled and not self.accelerator.is_fsdp2)

    @property
    def zero3(self) -> bool:
        """Whether DeepSpeed's third stage shards the weights: whole only while a module runs."""
        return bool(self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return getattr(self.processing_class, "tokenizer", self.processing_class)

    def no_checkpointing(self) -> AbstractContextManager[None]:
        """A context without gradient checkpointing, for forwards that need no gradient."""
        context: AbstractContextManager[None] = disable_gradient_checkpointing(
            self.model, self.args.gradient_checkpointing_kwargs
        )
        return context

    def log_metrics_of_step(self, metrics: Mapping[str, float]) -> None:
        """Average values into the next training log. Call on every process or on none."""
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    @property
    def turn_end(self) -> int:
        """The token that ends the policy's turn: the last one of an assistant's message that generation stops at."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template:
            said = [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}]
            ids = tokenizer.apply_chat_template(
                said, chat_template=self.chat_template, tokenize=True, return_dict=False
            )
            for token in reversed(ids):
                if token in self.eos_token_ids:
                    return int(token)
        return int(tokenizer.eos_token_id)

    def encode_prompts(
        self,
        prompts: list[Messages | str],
        template_kwargs: Row | None = None,
        environments: Sequence[str | None] | None = None,
    ) -> list[list[int]]:
        """Token ids of prompts as the policy sees them, chat template, tools and generation prompt included.

        Args:
            template_kwargs: arguments of the chat template, over the run's ``chat_template_kwargs``.
            environments: of each prompt the name of its environment, where rows name theirs; ``None`` gets the tools of all.
        """
        several = self.environment_factories is not None and self._multi_environment
        if several:
            self._env_tools.setdefault(None, self.tools)
        self._batch_environments = list(environments) if several and environments is not None else [None] * len(prompts)
        with self._template(template_kwargs or {}):
            ids: list[list[int]] = self._tokenize_prompts(prompts)[0] if prompts else []
        return ids

    @contextmanager
    def _template(self, kwargs: Row) -> Iterator[None]:
        before: State = self.chat_template_kwargs
        self.chat_template_kwargs: State = {**before, **kwargs}
        try:
            yield
        finally:
            self.chat_template_kwargs = before

    def sample(self, rows: Sequence[Row], *, temperature: float, top_p: float, shown: Shown | None = None) -> Sampled:
        """A completion of each row by the engine that TRL generates with, of several turns where there are tools.

        ``shown``: prompts to answer instead of the rows' own, and the model that does; another model than the policy answers
        through transformers, also where vLLM samples for the training.
        """
        prompts = self._enter_environments(rows)
        if shown is None:
            shown = Shown(prompts)
        prompts = shown.prompts
        with self._sampling(temperature, top_p), self._answering(shown.model), self._template(shown.template_kwargs):
            seen = self.state.num_input_tokens_seen
            try:
                _, ids, _, completions, *_ = self._generate(prompts)
            finally:
                self.state.num_input_tokens_seen = seen
                self._metrics["eval"].clear()
        return Sampled(prompts, completions, ids, self.sampled_lengths)

    def judged_scores(
        self,
        rows: Sequence[Row],
        prompts: list[Prompt],
        completions: list[Prompt],
        ids: list[list[int]],
    ) -> list[list[float]]:
        """Run all reward functions as in training, and log nothing: (B, functions), NaN where one gave no score.

        Collective: call on every rank, with equally many rows.
        """
        training, pending = self.model.training, dict(self._pending_extra_logs)
        self.model.eval()  # TRL files what is logged by the model's mode
        try:
            self._calculate_rewards([dict(row) for row in rows], prompts, completions, ids)
        finally:
            self.model.train(training)
            self._metrics["eval"].clear()
            self._pending_extra_logs.clear()
            self._pending_extra_logs.update(pending)
        return self.local_scores

    def write(self, prompts: list[Messages], *, temperature: float, top_p: float, max_tokens: int) -> list[list[int]]:
        """Token ids of what the policy says to prompts of any kind: one turn, without tools, and nothing is logged.

        On several processes all must call this, with equally many prompts.
        """
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        encoded = [self._plain_prompt(tokenizer, prompt) for prompt in prompts]
        with self._sampling(temperature, top_p, max_tokens):
            ids: list[list[int]] = self._generate_single_turn(encoded, None, {}, 1)[0]
        return ids

    def _plain_prompt(self, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
        if not tokenizer.chat_template:  # a policy that continues texts
            prompt = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if isinstance(prompt, str):
            return list(tokenizer(prompt)["input_ids"])
        return list(
            tokenizer.apply_chat_template(
                prompt,
                chat_template=self.chat_template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **self.chat_template_kwargs,
            )
        )

    def _enter_environments(self, rows: Sequence[Row]) -> list[Prompt]:
        """The rows' prompts, with the tools at hand and an environment reset for each, as TRL does for a training batch."""
        prompts = [row["prompt"] for row in rows]
        environments: Sequence[Environment | None] = [None] * len(rows)
        if self.environment_factories is not None:
            names = [row["environment"] if self._multi_environment else None for row in rows]
            environments = self.environments = [self._from_pool(name, names[:i]) for i, name in enumerate(names)]
            self._batch_environments = names
            hidden = ("environment",) if self._multi_environment else ()  # TRL's reset does not get it
            prompts = [
                observed(prompt, environment.reset(**{k: v for k, v in row.items() if k not in hidden}))
                for prompt, environment, row in zip(prompts, environments, rows, strict=True)
            ]
        tools = [[*self._standalone_tools, *_methods(e)] for e in environments] if self.tools else []
        self._sync_tool_dicts = [{t.__name__: t for t in ts if not inspect.iscoroutinefunction(t)} for ts in tools]
        self._async_tool_dicts = [{t.__name__: t for t in ts if inspect.iscoroutinefunction(t)} for ts in tools]
        return prompts

    def _from_pool(self, name: str | None, before: Sequence[str | None]) -> Environment:
        """An environment of this name that none of the rows ``before`` has; a new one where there are too few."""
        pool = self._environment_pool[name]
        if before.count(name) == len(pool):
            pool.append(self.environment_factories[name]())
        environment: Environment = pool[before.count(name)]
        return environment

    @contextmanager
    def _sampling(self, temperature: float, top_p: float, max_tokens: int | None = None) -> Iterator[None]:
        """The engines set for other sampling than the training's, the model in evaluation mode; all as before after."""
        settings: State = {"temperature": temperature, "top_p": top_p}
        greedy = {"do_sample": False, "temperature": 1.0} if temperature == 0 else {}
        length = {} if max_tokens is None else {"max_new_tokens": max_tokens}
        vllms = {} if max_tokens is None else {"max_completion_length": max_tokens}
        changes: list[tuple[Any, State]] = []
        if getattr(self, "vllm_generation", None):
            changes.append((self.vllm_generation, settings | vllms))
        if getattr(self, "generation_config", None):
            changes.append((self.generation_config, settings | greedy | length))
        before = [(engine, {name: getattr(engine, name) for name in new}) for engine, new in changes]
        kwargs = dict(getattr(self, "generation_kwargs", {}))
        training = self.model.training
        self.model.eval()
        for engine, new in changes:
            vars(engine).update(new)
        if kwargs:
            self.generation_kwargs.update(settings | length)
        try:
            yield
        finally:
            self.model.train(training)
            for engine, old in before:
                vars(engine).update(old)
            if kwargs:
                self.generation_kwargs.update(kwargs)

    @contextmanager
    def _answering(self, model: nn.Module | None) -> Iterator[None]:
        """``model`` generates instead of the policy, by transformers and with the settings of this moment."""
        if model is None:
            yield
            return
        new: State = {"model_wrapped": model, "use_vllm": False, "use_transformers_continuous_batching": False}
        if not hasattr(self, "generation_config"):  # vLLM samples for the training
            engine = self.vllm_generation
            kwargs: State = {
                "max_new_tokens": self.max_completion_length,
                "pad_token_id": self.tokenizer.pad_token_id,
                "eos_token_id": self.eos_token_ids,
                "top_k": self.top_k,
                "min_p": self.min_p,
                "repetition_penalty": self.repetition_penalty,
            }
            kwargs |= (
                {"do_sample": True, "temperature": engine.temperature, "top_p": engine.top_p}
                if engine.temperature
                else {"do_sample": False}
            )
            new |= {"generation_config": GenerationConfig(**kwargs), "generation_kwargs": kwargs}
        before = {name: getattr(self, name) for name in new if hasattr(self, name)}
        for name, value in new.items():
            setattr(self, name, value)
        try:
            yield
        finally:
            for name in new:
                if name in before:
                    setattr(self, name, before[name])
                else:
                    delattr(self, name)

    def prepare_teacher(self, teacher: nn.Module, *, stays: bool = False) -> nn.Module:
        """A separate, gradient-free model under the run's parallelism; where it is already if it ``stays``."""
        prepared: nn.Module
        if self.is_deepspeed_enabled:
            prepared = prepare_deepspeed(teacher, self.accelerator)
            return prepared
        if self.is_fsdp_enabled:
            prepared = prepare_fsdp(teacher, self.accelerator)
            return prepared
        prepared = self.accelerator.prepare_model(
            teacher, device_placement=False if stays else None, evaluation_mode=True
        )
        return prepared

    # -- interruption ---------------------------------------------------------------------------------------------

    def train(self, *args: object, **kwargs: object) -> object:
        """TRL's ``train``, which a signal can interrupt.

        On a single process, a signal raises ``Interrupted`` during sampling and evaluation. At any other time, and on several
        processes, training stops with a checkpoint at the end of the step, and ``stopped`` is set.
        """
        with interrupt.deferred():
            return super().train(*args, **kwargs)

    def note_step_end(self) -> None:
        """Keep the state of the random number generators. Call at the end of each optimizer step."""
        self._at_step_end = RandomState.now()

    def asked_to_stop(self) -> bool:
        """Whether any process received a signal. Collective: call on every rank."""
        mine = interrupt.received() is not None
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(float(mine), device=self.accelerator.device)
            mine = bool(self.accelerator.reduce(flag, "sum") > 0)
        self.stopped = mine
        return mine

    def save_interrupted(self) -> Path | None:
        """The checkpoint of the last completed step, written if it does not exist. ``None`` before training began."""
        folder = self._checkpoint_folder(None)
        if (folder / checkpoints.MANIFEST).is_file():
            return folder
        if self._at_step_end is None:
            return None
        with interrupt.deferred():
            self._save_checkpoint(self.model, None)
        return folder

    def save_policy(self, folder: Path) -> None:
        """Write the policy and its tokenizer for ``from_pretrained``. Collective: call on every rank."""
        with checkpoints.writing(folder):
            self.save_model(str(folder), _internal_call=True)
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    def push_checkpoint(self, folder: Path) -> None:
        """Upload a checkpoint's policy. Called on the main process, after a save, unless ``hub_strategy`` is ``end``."""
        raise NotImplementedError

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            self.push_checkpoint(Path(checkpoint_folder))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context for an evaluation.

        At its end the random number generators are as before. A signal may end it; the resumed run then repeats the evaluation.
        """
        self.evaluation_due = True
        before = RandomState.now()
        try:
            with self._interruptible(True):
                yield
        finally:
            before.restore()

    @contextmanager
    def _interruptible(self, droppable: bool) -> Iterator[None]:
        if droppable and self.accelerator.num_processes == 1:
            with interrupt.at_once():
                yield
        else:
            yield

    def _sampled(self, inputs: list[State]) -> State:
        """TRL's sampling and judging. A signal ends it at once if the step has changed nothing yet; the step is then dropped."""
        metrics = {name: list(values) for name, values in self._metrics["train"].items()}
        tokens, before = self.state.num_input_tokens_seen, self._at_step_end
        try:
            with self._interruptible(self.micro_step == 0 and (self._resumed or before is not None)):
                return super()._generate_and_score_completions(inputs)  # type: ignore[no-any-return]
        except interrupt.Interrupted:
            if before is not None:
                before.restore()
            self._metrics["train"].clear()
            self._metrics["train"].update(metrics)
            self.state.num_input_tokens_seen = tokens
            raise

    # -- TRL's private methods, overridden ------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list[Prompt]) -> Tokenized:
        """As TRL, but a last message of the assistant is continued where TRL would close it and open another."""
        if not any(begins_answer(prompt) for prompt in prompts):
            found: Tokenized = super()._tokenize_prompts(prompts)
            return found
        if self._is_vlm:
            raise ValueError(
                "prompt: a prefix of the assistant's answer is not supported with images; end with the user"
            )
        ids = [
            self.processing_class.apply_chat_template(
                prompt,
                tools=self.tools or None,
                chat_template=self.chat_template,
                add_generation_prompt=not begins_answer(prompt),
                continue_final_message=begins_answer(prompt),
                tokenize=True,
                return_dict=False,
                **self.chat_template_kwargs,
            )
            for prompt in prompts
        ]
        return ids, None, {}

    def _generate_and_score_completions(self, inputs: list[State]) -> State:
        self._targets = self.targets(inputs)
        try:
            batch = self._sampled(inputs)
        finally:
            self._targets = None
        # After the sampling, which a signal may abandon: a dropped step must leave no trace in the method's memory.
        self.generation = self.on_rollouts(inputs, token_batch(batch))
        return {**batch, ROWS: torch.arange(len(inputs), device=batch["completion_ids"].device)}

    def _generate(self, prompts: list[Prompt]) -> Generated:
        found: Generated = super()._generate(prompts)
        if self._targets is None and talks(self.environments):
            found = self._converse(found)
        _, ids, tool_mask, *_ = found
        self.sampled_lengths = [len(i) for i in ids] if tool_mask is None else [sum(m) for m in tool_mask]
        return found

    def _converse(self, found: Generated) -> Generated:
        """TRL's result of a generation, continued with the environments that answer messages."""
        prompt_ids, ids, mask, completions, logps, *rest = found
        messages = [completion for completion in completions if not isinstance(completion, str)]
        if len(messages) < len(completions):
            raise ValueError(
                "environment: one that answers messages needs prompts of messages; set prompt_format: chat"
            )
        mask = mask or [[1] * len(i) for i in ids]

        def decode(own: list[int]) -> str:
            return str(self.tokenizer.decode(own, skip_special_tokens=True))

        if not self.tools:  # what looks like a call is a message as any other
            messages = [[{"role": "assistant", "content": decode(own)}] for own in ids]
        converse(
            self.environments,
            prompt_ids,
            ids,
            mask,
            messages,
            logps,
            generate=lambda seen: super(TRLHooks, self)._generate_single_turn(seen, None, {}, num_generations=1),
            encode=self._reply_ids,
            decode=decode,
            ends=self.eos_token_ids,
            most_tokens=self.max_completion_length,
            most_turns=self.max_tool_calling_iterations,
        )
        lengths = self.accelerator.gather(torch.tensor([sum(m) for m in mask], device=self.accelerator.device)).float()
        logged = self._metrics["train" if self.model.training else "eval"]
        for name, value in {"mean": lengths.mean(), "min": lengths.min(), "max": lengths.max()}.items():
            if logged[f"completions/{name}_length"]:
                logged[f"completions/{name}_length"][-1] = value.item()
        return (prompt_ids, ids, mask, [*messages], logps, *rest)

    def _reply_ids(self, text: str) -> list[int]:
        def encode(messages: Messages, begins: bool) -> list[int]:
            return list(
                self.tokenizer.apply_chat_template(
                    messages,
                    add_generation_prompt=begins,
                    chat_template=self.chat_template,
                    tokenize=True,
                    return_dict=False,
                    **self.chat_template_kwargs,
                )
            )

        return reply_ids(text, encode, self.eos_token_ids)

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: object, **kwargs: object) -> Any:
        if self._targets is not None:
            return self._targets, None
        return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _calculate_rewards(
        self,
        inputs: list[State],
        prompts: list[Prompt],
        completions: list[Prompt],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        scores: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        first = self.accelerator.process_index * len(prompts)
        self.local_scores = scores[first : first + len(prompts)].tolist()
        return scores

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: object,
        **kwargs: object,
    ) -> Scored:
        if not torch.is_grad_enabled() and model is self.model and kwargs.get("pixel_values") is None:
            ids, mask = input_ids[:, -logits_to_keep:], attention_mask[:, -logits_to_keep:]
            prompts = input_ids[:, :-logits_to_keep], attention_mask[:, :-logits_to_keep]
            nothing = torch.zeros(len(ids), device=ids.device)
            own = self.sampled_logp(TokenBatch(*prompts, ids, mask, mask.bool(), nothing))
            if own is not None:
                return own, None, None
        found: Scored = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        return found

    def _compute_loss(self, model: nn.Module, inputs: State) -> Tensor:
        return self.batch_loss(model, inputs[ROWS], lambda: super(TRLHooks, self)._compute_loss(model, inputs))

    def _get_train_sampler(self, dataset: object = None) -> object:
        sampler = super()._get_train_sampler(dataset)
        if type(sampler) is RepeatSampler:
            sampler.__class__ = EpochSampler
        self._train_sampler = sampler
        return sampler

    def _run_epoch(self, *, epoch: int, **kwargs: object) -> None:
        # Resumed after its last step, or ended before its first one: the loop would take one more.
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        if isinstance(getattr(self, "_train_sampler", None), EpochSampler):
            self._train_sampler.epoch = epoch
        if self._logging is not None:
            self._tr_loss.fill_(self._logging["loss"])
            self._globalstep_last_logged = self._logging["last"]
            self._logging = None
        elif self.state.global_step == 0:
            self.note_step_end()
        super()._run_epoch(epoch=epoch, **kwargs)

    def _checkpoint_folder(self, trial: object) -> Path:
        return Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        folder = self._checkpoint_folder(trial)
        if self.args.should_save:
            checkpoints.remove(folder)  # an earlier process may have left an incomplete one
        self.accelerator.wait_for_everyone()
        with checkpoints.writing(folder):
            self._write_checkpoint(folder, model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with checkpoints.writing(folder):
                checkpoints.seal(folder)
            best = self.state.best_model_checkpoint
            keep = None if best is None else Path(best)
            checkpoints.rotate(folder.parent, self.args.save_total_limit, current=folder, keep=keep)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, folder: Path, model: nn.Module, trial: object) -> None:
        # Transformers would delete older checkpoints before this one is complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        state = folder / "errata_state"
        if self.args.should_save:
            state.mkdir(exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.save_state(state)
        # One generation batch can serve several steps, and one log row can cover several: a checkpoint may fall in between.
        inside = self.inside_generation
        position = {
            "step": self._step,
            "processes": self.accelerator.num_processes,
            "inputs": self._buffered_inputs if inside else None,
            "generation": self.saved_generation() if inside else None,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "logging": {"loss": float(self._tr_loss), "last": self._globalstep_last_logged},
            "evaluation_due": self.evaluation_due,
        }
        torch.save(position, state / f"position_{self.accelerator.process_index}.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint) / "errata_state"
        if not folder.is_dir():
            raise ValueError(
                f"{checkpoint}: has no errata_state, so it was not written by errata; start from it with --model instead"
            )
        path = folder / f"position_{self.accelerator.process_index}.pt"
        if not path.is_file():
            raise ValueError(
                f"{checkpoint}: was written by fewer processes than these {self.accelerator.num_processes}; "
                "use as many as the run began with"
            )
        saved = torch.load(path, map_location=self.accelerator.device, weights_only=False)
        here = self.accelerator.num_processes
        if (then := saved.get("processes", here)) != here:
            raise ValueError(
                f"{checkpoint}: was written by {then} processes, and there are {here} now; use as many as the run began with"
            )
        self._resumed = True
        self._step, self.evaluation_due, self._logging = saved["step"], saved["evaluation_due"], saved["logging"]
        self._metrics["train"].update(saved["metrics"])
        if saved["inputs"] is not None:
            self._buffered_inputs, self.generation = saved["inputs"], saved["generation"]
        self.load_state(folder)


def _methods(environment: object) -> list[Callable[..., object]]:
    """What TRL offers of an environment as tools."""
    names = [name for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)]
    return [getattr(environment, n) for n in names if n not in ("reset", "get_reward") and not n.startswith("_")]
