"""The policy as its own teacher: its current weights, its initial weights, an average of them, or a mixture.

======================  ====================================================  ==========================================
kind                    teacher                                               memory beside the student's
======================  ====================================================  ==========================================
``live``                the student's current weights                         0
``frozen``              the student's initial weights                         one set of weights; LoRA: 0, adapter off,
                                                                              or one adapter if it was trained before
``ema``                 an exponential moving average of its weights          one set of weights; LoRA: one adapter
``sync``                a copy of its weights, renewed every N steps          one set of weights; LoRA: one adapter
``trust_region``        π ∝ π_live^(1-w) · π_base^w                           as ``frozen``, and a head twice as wide
                                                                              during the loss (not with LoRA)
======================  ====================================================  ==========================================

A set of weights has no gradients or optimizer state, and can be kept in bfloat16 or on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from errata.experts import adapters
from errata.experts.base import HeadOf, Teacher, device_of, evaluating, moved_to, unwrapped
from errata.experts.ema import ema_update, update_generator
from errata.experts.heads import gathered_head, stacked_head
from errata.experts.mixing import mixed_logits
from errata.experts.sharding import gathered, placed_like, whole
from errata.ops.scores import Head

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

KINDS = ("live", "frozen", "ema", "sync", "trust_region")
FILE = "teacher.safetensors"
"""File of the teacher's weights in a checkpoint."""


class SelfTeacher(Teacher):
    """The student ``model`` as its own teacher, of one of the ``KINDS``.

    Args:
        model: the student, unwrapped, before the first optimizer step; a Hugging Face or PEFT model.
        kind: one of ``KINDS``.
        rate: for ``ema``, per optimizer step: teacher <- (1 - rate) teacher + rate student.
        prepare: wraps a separate copy for the run's parallelism.
        sync_steps: for ``sync``, optimizer steps between copies.
        base_weight: for ``trust_region`` (arXiv 2601.20802), w of the logits (1 - w)·z_live + w·z_base.
        dtype: of a separate copy; the student's by default. In bfloat16 ``ema`` rounds stochastically (see ``ema_update``).
        device: device of a separate copy between forward passes; the student's by default.
        seed: of the stochastic rounding.
    Raises:
        ValueError: an unknown kind; a setting out of range; ``dtype`` or ``device`` for a teacher without a separate copy;
            for ``trust_region``, logits that are not linear in the hidden states; an adapter beside which other weights are
            trained, unless the teacher is ``live``.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        kind: str,
        rate: float = 0.0,
        prepare: Callable[[nn.Module], nn.Module] = lambda m: m,
        *,
        sync_steps: int | None = None,
        base_weight: float = 0.95,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        lora = hasattr(model, "peft_config")
        _check(model, kind, lora, sync_steps, base_weight, dtype, device)
        self.kind, self.rate, self.sync_steps, self.base_weight, self.seed = kind, rate, sync_steps, base_weight, seed
        self.parts = 2 if kind == "trust_region" else 1
        self.updates = 0
        self._student, self._lora = model, lora
        self._copy: nn.Module | None = None
        self._own_adapter: str | None = None
        self._offloaded = device is not None
        if lora and kind != "live":
            adapters.check_alone(model)
            if self._tracks_student or not adapters.changes_nothing(model, adapters.active_adapter(model)):
                self._own_adapter = adapters.add_copy(model)
        elif not lora and kind != "live":
            self._copy = prepare(_copy_of(model, dtype, device))

    @property
    def separate(self) -> nn.Module | None:
        return None if self._copy is None else unwrapped(self._copy)

    @property
    def _tracks_student(self) -> bool:
        """Whether ``update`` changes the teacher's weights."""
        return self.kind in ("ema", "sync")

    def _is_student(self, part: int) -> bool:
        """Whether a part is the student's current model; the first part of a trust region is."""
        return self.kind == "live" or (self.kind == "trust_region" and part == 0)

    @contextmanager
    def acting(self, student: nn.Module, part: int = 0) -> Iterator[nn.Module]:
        with ExitStack() as stack:
            model = student
            if not self._is_student(part):
                if self._copy is not None:
                    model = self._copy
                if self._offloaded:
                    stack.enter_context(moved_to(model, device_of(student)))
                if self._lora:
                    stack.enter_context(self._adapter())
            yield stack.enter_context(evaluating(model))

    @contextmanager
    def generating(self, student: nn.Module) -> Iterator[nn.Module]:
        with ExitStack() as stack:
            live = stack.enter_context(self.acting(student))
            if self.kind == "trust_region":
                inner: Any = self._student.get_base_model() if self._lora else live
                base = self._without_adapter(inner.forward) if self._lora else stack.enter_context(self.acting(live, 1))
                stack.enter_context(mixed_logits(inner, base, self.base_weight))
            yield live

    def _without_adapter(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def base(*args: Any, **kwargs: Any) -> Any:
            with self._adapter():
                return forward(*args, **kwargs)

        return base

    @contextmanager
    def _adapter(self) -> Iterator[None]:
        """A context in which the PEFT student runs the teacher's adapter, or none where that is the initial model."""
        own = self._own_adapter
        with self._student.disable_adapter() if own is None else adapters.switched(self._student, own):
            yield

    def join(self, states: Sequence[list[Tensor]]) -> list[Tensor]:
        if self.kind != "trust_region":
            return states[0]
        w = self.base_weight
        if self._lora:  # both parts have the same head, which is linear, so mixing states mixes logits
            return [torch.lerp(live, base.to(live), w) for live, base in zip(*states, strict=True)]
        return [torch.cat([(1 - w) * live, w * base], dim=-1) for live, base in zip(*states, strict=True)]

    def head(self, student_head: Head, head_of: HeadOf) -> Head:
        if self._copy is None:
            if not self._lora or self._is_student(0):
                return student_head
            if not _in_adapter(self._student.get_output_embeddings()):
                return student_head
            with self._adapter():  # the adapter trains a copy of the head, or some of its rows: the teacher has its own
                return head_of(self._student)
        device = student_head.weight.device
        own = gathered_head(head_of(unwrapped(self._copy)), device)
        if self.kind != "trust_region":
            return own
        return stacked_head(gathered_head(student_head, device), own, self.base_weight)

    def head_changes(self, student_head: Head) -> bool:
        # A synced teacher changes between generation batches only, a frozen one never.
        follows = self._is_student(0) or (self.kind == "ema" and not self.frozen_early)
        return follows and student_head.weight.requires_grad

    @torch.no_grad()
    def update(self) -> None:
        if not self._tracks_student or self.frozen_early:
            return
        self.updates += 1
        if self.kind == "ema":
            self._average()
        elif self.sync_steps and self.updates % self.sync_steps == 0:
            for teacher, student in self._pairs():
                teacher.copy_(student)

    def _average(self) -> None:
        generator: torch.Generator | None = None
        for teacher, student in self._pairs():
            if generator is None:
                generator = update_generator(self.seed, self.updates, teacher.device)
            ema_update(teacher, student, self.rate, generator)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(teacher, student) tensors of each parameter that the teacher tracks; what is written to the first is kept."""
        pairs: Iterable[tuple[Tensor, Tensor]]
        if self._own_adapter is not None:
            pairs = adapters.pairs(self._student, adapters.active_adapter(self._student), self._own_adapter)
        else:
            assert self.separate is not None
            pairs = zip(self.separate.parameters(), unwrapped(self._student).parameters(), strict=True)
        for teacher, student in pairs:
            with whole([student]), whole([teacher], changed=True):
                yield teacher.data, student.data

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.updates = int(state.get("updates", 0))

    def own_weights(self) -> dict[str, Tensor]:
        """The weights a checkpoint must hold, by name, in their own precision; empty unless ``update`` changes them.

        Tied tensors are listed once.
        """
        if not self._tracks_student:
            return {}
        if self._copy is not None:
            return dict(unwrapped(self._copy).named_parameters())
        named, own = self._student.named_parameters(), self._own_adapter or ""
        return {name: p for name, p in named if adapters.of_adapter(name, own)}

    def save(self, folder: Path, *, write: bool = True) -> None:
        weights: dict[str, Tensor] = {}
        for name, tensor in self.own_weights().items():
            found = gathered(tensor)
            if write:
                weights[name] = found.cpu().contiguous()
        if weights:
            save_file(weights, folder / FILE)

    def load(self, folder: Path) -> None:
        """Read the weights that ``save`` wrote. Raises ``ValueError`` if the checkpoint has none, or another model's."""
        weights = self.own_weights()
        if not weights:
            return
        path = folder / FILE
        if not path.is_file():
            raise ValueError(
                f"{path}: missing, this checkpoint was written without a teacher of kind {self.kind}; start a new run or set "
                "teacher: frozen"
            )
        saved = load_file(path)
        if saved.keys() != weights.keys():
            raise ValueError(f"{path}: holds another model's weights; resume with the model it was trained from")
        for name, tensor in weights.items():
            with whole([tensor], changed=True):
                tensor.data.copy_(placed_like(saved[name], tensor.data))


def _check(
    model: PreTrainedModel | PeftModel,
    kind: str,
    lora: bool,
    sync_steps: int | None,
    base_weight: float,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> None:
    if kind not in KINDS:
        raise ValueError(f"teacher: {kind!r} is none of {', '.join(KINDS)}")
    if kind == "sync" and (sync_steps is None or sync_steps < 1):
        raise ValueError(
            f"teacher_sync_steps: {sync_steps}; teacher: sync needs a number of optimizer steps between copies"
        )
    if not 0 <= base_weight <= 1:
        raise ValueError(f"teacher_base_weight: {base_weight} is not in [0, 1]")
    for name, value in {"teacher_dtype": dtype, "teacher_device": device}.items():
        if value is not None and (lora or kind == "live"):
            why = "with LoRA it shares the student's base" if lora else "teacher: live is the student"
            raise ValueError(f"{name}: the teacher has no weights of its own, {why}; leave it out")
    if kind == "trust_region":
        _check_mixable(model)


def _check_mixable(model: PreTrainedModel | PeftModel) -> None:
    """Raise ``ValueError`` unless a mixture of hidden states gives the mixture of the logits."""
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        raise ValueError("teacher: trust_region mixes logits, but this model's soft-capped head is not linear; use ema")
    layer = model.get_output_embeddings()
    if hasattr(layer, "base_layer") or _in_adapter(layer):
        raise ValueError(
            "teacher: trust_region needs one output head, and the adapter changes it; "
            "leave it out of target_modules, modules_to_save and trainable_token_indices, or use ema"
        )


def _copy_of(model: PreTrainedModel, dtype: torch.dtype | None, device: torch.device | str | None) -> nn.Module:
    # Each tensor is copied to its device and type at once, so that no second copy on the student's device is made.
    memo: dict[int, Any] = {}
    for p in model.parameters():
        if p.is_floating_point():
            with whole([p]):
                copied = p.detach().to(device or p.device, dtype or p.dtype, copy=True)
            memo[id(p)] = nn.Parameter(copied, requires_grad=False)
    for b in model.buffers():
        memo[id(b)] = b.detach().to(device or b.device, copy=True)
    # A forward patched onto the instance would still run the student's weights.
    patched = model.__dict__.pop("forward", None)
    try:
        teacher: nn.Module = copy.deepcopy(model, memo)
    finally:
        if patched is not None:
            model.forward = patched
    return teacher.requires_grad_(False).eval()


def _in_adapter(head: nn.Module) -> bool:
    """Whether the adapter trains a copy of the output embedding (modules_to_save) or rows of it (trainable_token_indices)."""
    return hasattr(head, "modules_to_save") or hasattr(head, "token_adapter")
