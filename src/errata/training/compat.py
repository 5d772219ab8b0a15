"""The only file that touches a private name of TRL. ``tests/training/test_compat.py`` pins their signatures.

``TRLHooks`` is TRL's GRPO trainer with its private extension points under public names: a subclass implements
``on_rollouts`` and ``batch_loss`` and never sees an underscore of TRL's.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import RepeatSampler
from trl.trainer.utils import maybe_gather_lm_head_ctx as _gather

from errata.training import checkpoint as checkpoints
from errata.training import interrupt
from errata.training.checkpoint import complete_checkpoints as complete_checkpoints

PRIVATE = {
    "_generate_and_score_completions": ("self", "inputs"),
    "_compute_loss": ("self", "model", "inputs"),
    "_tokenize_prompts": ("self", "prompts"),
    "_generate": ("self", "prompts"),
    "_generate_single_turn": ("self", "prompt_ids", "images", "multimodal_fields", "num_generations"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_get_train_sampler": ("self", "dataset"),
    "_run_epoch": (
        *("self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
        *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
        "steps_trained_in_current_epoch",
    ),
}
"""Private methods used here, with the parameters they must have."""


def gathered(*parameters: Tensor | None) -> Any:
    """A context in which a head that DeepSpeed ZeRO-3 has sharded is whole."""
    return _gather(*[p for p in parameters if p is not None])


def no_checkpointing(trainer: Any) -> Any:
    """A context without gradient checkpointing, for forwards that need no gradient."""
    return disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs)


def beyond_the_clipped_surrogate(args: Any) -> list[str]:
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
        "router_aux_loss_coef": not args.router_aux_loss_coef,
    }
    return [name for name, is_plain in plain.items() if not is_plain]


class Sampled(NamedTuple):
    """Attempts, one per row."""

    prompts: list[Any]
    """What was asked, with what the environment showed at its reset."""
    completions: list[Any]
    """Texts or messages."""
    ids: list[list[int]]
    lengths: list[int]
    """Tokens that the policy itself generated."""
    environments: list[Any] | None


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's order of problems, as a function of the seed and of ``epoch`` alone.

    ``RepeatSampler`` draws the order of each epoch from one generator, which a resumed process starts anew: its first epoch
    would get the first order, whichever epoch it is.
    """

    epoch = 0

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()


class RandomState(NamedTuple):
    """All generators that sampling draws from."""

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


class TRLHooks(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer, opened at the places errata needs."""

    batch_records: Any = None
    """Whatever else belongs to the generation batch in use; saved with it."""
    evaluation_due: bool = False
    """An evaluation of the policy as it stands has begun and not ended; a checkpoint says so."""
    stopped: bool = False
    """A signal ended training before its last step."""
    _at_step_end: RandomState | None = None
    _logging: dict[str, Any] | None = None
    _resumed: bool = False

    # -- to be implemented ----------------------------------------------------------------------------------------

    def on_rollouts(self, inputs: list[dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
        """Called with the rows and TRL's tensors of a freshly sampled and judged generation batch, this process's part."""
        raise NotImplementedError

    def batch_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The loss of one micro-batch, already divided for gradient accumulation."""
        raise NotImplementedError

    def save_state(self, folder: Path) -> None:
        """Write what must outlive the process; the checkpoint counts as complete only after this."""

    def load_state(self, folder: Path) -> None:
        """Restore what ``save_state`` wrote."""

    # -- offered --------------------------------------------------------------------------------------------------

    @property
    def micro_step(self) -> int:
        """Which of an optimizer step's micro-batches this is."""
        return int(self._step) % int(self.args.gradient_accumulation_steps)

    def trl_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's own loss of a micro-batch, with all its options."""
        return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]

    def log_metric(self, name: str, value: float) -> None:
        """Average ``value`` into the next training log. Call on every process or on none."""
        self._metrics["train"][name].append(value)

    def encode_prompts(self, prompts: list[Any]) -> list[list[int]]:
        """Token ids of prompts as the policy sees them, chat template, tools and generation prompt included."""
        self._batch_environments = [None] * len(prompts)
        ids: list[list[int]] = self._tokenize_prompts(prompts)[0] if prompts else []
        return ids

    def sample(self, rows: list[dict[str, Any]], *, temperature: float, top_p: float) -> Sampled:
        """An attempt at each row by whatever engine TRL generates with, of several turns where there are tools."""
        prompts = self._enter_environments(rows)
        with self._sampling(temperature, top_p):
            seen = self.state.num_input_tokens_seen
            try:
                _, ids, tool_mask, completions, *_ = self._generate(prompts)
            finally:
                self.state.num_input_tokens_seen = seen
                self._metrics["eval"].clear()
        lengths = [len(i) for i in ids] if tool_mask is None else [sum(m) for m in tool_mask]
        return Sampled(prompts, completions, ids, lengths, self.environments)

    def write(self, prompts: list[Any], *, temperature: float, top_p: float, max_tokens: int) -> list[list[int]]:
        """Token ids of what the policy says to prompts of any kind: one turn, without tools, and nothing is logged.

        On several processes all must call this, with equally many prompts.
        """
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        encoded = [self._plain_prompt(tokenizer, prompt) for prompt in prompts]
        with self._sampling(temperature, top_p, max_tokens):
            ids: list[list[int]] = self._generate_single_turn(encoded, None, {}, 1)[0]
        return ids

    def _plain_prompt(self, tokenizer: Any, prompt: Any) -> list[int]:
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

    def _enter_environments(self, rows: list[dict[str, Any]]) -> list[Any]:
        """The rows' prompts, with the tools at hand and an environment reset for each, as TRL does for a training batch."""
        prompts = [row["prompt"] for row in rows]
        environments: list[Any] = [None] * len(rows)
        if self.environment_factories is not None:
            pool = self._environment_pool[None]
            pool += [self.environment_factories[None]() for _ in range(len(rows) - len(pool))]
            environments = self.environments = pool[: len(rows)]
            self._batch_environments = [None] * len(rows)
            prompts = [
                _observed(prompt, environment.reset(**row))
                for prompt, environment, row in zip(prompts, environments, rows, strict=True)
            ]
        tools = [[*self._standalone_tools, *_methods(e)] for e in environments] if self.tools else []
        self._sync_tool_dicts = [{t.__name__: t for t in ts if not inspect.iscoroutinefunction(t)} for ts in tools]
        self._async_tool_dicts = [{t.__name__: t for t in ts if inspect.iscoroutinefunction(t)} for ts in tools]
        return prompts

    @contextmanager
    def _sampling(self, temperature: float, top_p: float, max_tokens: int | None = None) -> Iterator[None]:
        """The engines set for other sampling than the training's, the model in evaluation mode; all as before after."""
        settings: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
        length = {} if max_tokens is None else {"max_new_tokens": max_tokens}
        vllms = {} if max_tokens is None else {"max_completion_length": max_tokens}
        changes: list[tuple[Any, dict[str, Any]]] = []
        if getattr(self, "vllm_generation", None):
            changes.append((self.vllm_generation, settings | vllms))
        if getattr(self, "generation_config", None):
            changes.append((self.generation_config, settings | length))
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

    def prepare_teacher(self, teacher: Any, *, stays: bool = False) -> Any:
        """A separate, gradient-free model under the run's parallelism; where it is already if it ``stays``."""
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(teacher, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(teacher, self.accelerator)
        return self.accelerator.prepare_model(teacher, device_placement=False if stays else None, evaluation_mode=True)

    # -- interruption ---------------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL does. A signal raises ``Interrupted`` while this single process samples or evaluates; else training stops
        with a checkpoint at the end of the step, and ``interrupt.received`` says so.
        """
        with interrupt.deferred():
            return super().train(*args, **kwargs)

    def note_step_end(self) -> None:
        """Remember where the generators stand. To be called at the end of each optimizer step."""
        self._at_step_end = RandomState.now()

    def asked_to_stop(self) -> bool:
        """Whether any process got a signal. To be called on all."""
        mine = interrupt.received() is not None
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(float(mine), device=self.accelerator.device)
            mine = bool(self.accelerator.reduce(flag, "sum") > 0)
        self.stopped = mine
        return mine

    def save_interrupted(self) -> Path | None:
        """A checkpoint of the last step that ended, written unless there is one; ``None`` before training began."""
        folder = self._checkpoint_folder(None)
        if (folder / checkpoints.MANIFEST).is_file():
            return folder
        if self._at_step_end is None:
            return None
        with interrupt.deferred():
            self._save_checkpoint(self.model, None)
        return folder

    def save_policy(self, folder: Path) -> None:
        """Write the policy and its tokenizer as ``from_pretrained`` reads them. To be called on all processes."""
        with checkpoints.writing(folder):
            self.save_model(str(folder), _internal_call=True)
        if self.args.should_save:
            (folder / "training_args.bin").unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation leaves the training's generators alone, and a signal may end it: the resumed run begins it again."""
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

    def _sampled(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Rollouts. While they are sampled for a step that has changed nothing yet, a signal drops the step."""
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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return self.on_rollouts(inputs, self._sampled(inputs))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        return self.batch_loss(model, inputs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)
        if type(sampler) is RepeatSampler:
            sampler.__class__ = EpochSampler
        self._train_sampler = sampler
        return sampler

    def _run_epoch(self, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed at its end; the loop would take one more step
            self.control.should_training_stop = True
            return
        if isinstance(getattr(self, "_train_sampler", None), EpochSampler):
            self._train_sampler.epoch = kwargs["epoch"]
        if self._logging is not None:
            self._tr_loss.fill_(self._logging["loss"])
            self._globalstep_last_logged = self._logging["last"]
            self._logging = None
        elif self.state.global_step == 0:
            self.note_step_end()
        super()._run_epoch(**kwargs)

    def _checkpoint_folder(self, trial: Any) -> Path:
        return Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self._checkpoint_folder(trial)
        if self.args.should_save:
            checkpoints.remove(folder)  # what an earlier process left of it
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

    def _write_checkpoint(self, folder: Path, model: Any, trial: Any) -> None:
        # Transformers would delete older checkpoints before this one is whole.
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
        # Rows are sampled for several steps at once, and several steps logged at once: a run can stand in between.
        inside = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        position = {
            "step": self._step,
            "inputs": self._buffered_inputs if inside else None,
            "records": self.batch_records if inside else None,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
            "logging": {"loss": float(self._tr_loss), "last": self._globalstep_last_logged},
            "evaluation_due": self.evaluation_due,
        }
        torch.save(position, state / f"position_{self.accelerator.process_index}.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder = Path(checkpoint) / "errata_state"
        if not folder.is_dir():
            raise ValueError(
                f"{checkpoint}: has no errata_state, so it was not written by errata; start from it with --model instead"
            )
        self.load_state(folder)
        path = folder / f"position_{self.accelerator.process_index}.pt"
        if not path.is_file():
            raise ValueError(
                f"{checkpoint}: was written by fewer processes than these {self.accelerator.num_processes}; "
                "use as many as the run began with"
            )
        saved = torch.load(path, map_location=self.accelerator.device, weights_only=False)
        self._resumed = True
        self._step, self.evaluation_due, self._logging = saved["step"], saved["evaluation_due"], saved["logging"]
        self._metrics["train"].update(saved["metrics"])
        if saved["inputs"] is not None:
            self._buffered_inputs, self.batch_records = saved["inputs"], saved["records"]


def _observed(prompt: Any, observation: Any) -> Any:
    """The prompt with what an environment shows at its reset after the last message, as TRL puts it there."""
    if observation is None:
        return prompt
    content = prompt[-1]["content"]
    if isinstance(observation, list) and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if isinstance(observation, str) and isinstance(content, list):
        observation = [{"type": "text", "text": observation}]
    return [*prompt[:-1], {**prompt[-1], "content": content + observation}]


def _methods(environment: Any) -> list[Callable[..., Any]]:
    """What TRL offers of an environment as tools."""
    names = [name for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction)]
    return [getattr(environment, n) for n in names if n not in ("reset", "get_reward") and not n.startswith("_")]
