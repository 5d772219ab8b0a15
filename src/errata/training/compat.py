"""The only file that touches a private name of TRL. ``tests/training/test_compat.py`` pins their signatures.

``TRLHooks`` is TRL's GRPO trainer with its private extension points under public names: a subclass implements
``on_rollouts`` and ``batch_loss`` and never sees an underscore of TRL's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import maybe_gather_lm_head_ctx as _gather

PRIVATE = {
    "_generate_and_score_completions": ("self", "inputs"),
    "_compute_loss": ("self", "model", "inputs"),
    "_tokenize_prompts": ("self", "prompts"),
    "_generate": ("self", "prompts"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
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


class TRLHooks(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer, opened at the places errata needs."""

    batch_records: Any = None
    """Whatever else belongs to the generation batch in use; saved with it."""

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
        ids: list[list[int]] = self._tokenize_prompts(prompts)[0] if prompts else []
        return ids

    def sample(self, prompts: list[Any], *, temperature: float, top_p: float) -> tuple[list[Any], list[list[int]]]:
        """Completions (text or messages) and their token ids, one per prompt, by whatever engine TRL generates with."""
        with self._sampling(temperature, top_p):
            training = self.model.training
            self.model.eval()
            seen = self.state.num_input_tokens_seen
            try:
                _, ids, _, completions, *_ = self._generate(prompts)
            finally:
                self.model.train(training)
                self.state.num_input_tokens_seen = seen
                self._metrics["eval"].clear()
        return completions, ids

    @contextmanager
    def _sampling(self, temperature: float, top_p: float) -> Iterator[None]:
        engines = [e for e in (getattr(self, "vllm_generation", None), getattr(self, "generation_config", None)) if e]
        before = [(e, e.temperature, e.top_p) for e in engines]
        kwargs = dict(getattr(self, "generation_kwargs", {}))
        for engine in engines:
            engine.temperature, engine.top_p = temperature, top_p
        if kwargs:
            self.generation_kwargs.update(temperature=temperature, top_p=top_p)
        try:
            yield
        finally:
            for engine, old_temperature, old_top_p in before:
                engine.temperature, engine.top_p = old_temperature, old_top_p
            if kwargs:
                self.generation_kwargs.update(kwargs)

    def prepare_teacher(self, teacher: Any, *, stays: bool = False) -> Any:
        """A separate, gradient-free model under the run's parallelism; where it is already if it ``stays``."""
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(teacher, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(teacher, self.accelerator)
        return self.accelerator.prepare_model(teacher, device_placement=False if stays else None, evaluation_mode=True)

    # -- TRL's private methods, overridden ------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return self.on_rollouts(inputs, super()._generate_and_score_completions(inputs))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        return self.batch_loss(model, inputs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = (
            Path(self._get_output_dir(trial=trial))
            / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            / "errata_state"
        )
        if self.args.should_save:
            folder.mkdir(exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.save_state(folder)
        # A generation batch that serves several optimizer steps is part of where the run stands.
        generate_every = self.args.steps_per_generation * self.num_iterations
        rank = self.accelerator.process_index
        if self._step % generate_every:
            saved = {"step": self._step, "inputs": self._buffered_inputs, "records": self.batch_records}
            torch.save(saved, folder / f"generation_batch_{rank}.pt")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (folder / "complete").touch()

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
        path = folder / f"generation_batch_{self.accelerator.process_index}.pt"
        if path.is_file():
            saved = torch.load(path, map_location=self.accelerator.device, weights_only=False)
            self._step, self._buffered_inputs, self.batch_records = saved["step"], saved["inputs"], saved["records"]


def complete_checkpoints(run: Path) -> list[Path]:
    """Checkpoints of ``run`` that were written to the end, oldest first; one torn by a kill is not among them."""
    found = [p.parent.parent for p in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*/errata_state/complete")]
    return sorted(found, key=lambda p: int(p.name.rsplit("-", 1)[1]))
