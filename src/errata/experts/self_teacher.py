"""The policy as its own teacher: live, frozen at its first weights, following itself, or held near its first weights.

======================  ====================================================  ==========================================
kind                    what it is                                            memory beside the student's
======================  ====================================================  ==========================================
``live``                the student as it stands                              0
``frozen``              its first weights                                     one set of weights; LoRA: 0, adapter off
``ema``                 an exponential moving average of it                   one set of weights; LoRA: one adapter
``sync``                a copy, taken anew every so many steps                one set of weights; LoRA: one adapter
``trust_region``        π ∝ π_live^(1-w) · π_base^w                           as ``frozen``, and a head twice as wide
                                                                              during the loss (LoRA: not that)
======================  ====================================================  ==========================================

A set of weights is without gradients or optimizer state, and may be kept in bfloat16 or on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from errata.experts.base import HeadOf, Teacher, device_of, marking, unwrapped, visiting
from errata.experts.ema import follow, generator_of
from errata.experts.heads import stacked_head, whole_head
from errata.experts.mixing import mixed_logits
from errata.ops.scores import Head

KINDS = ("live", "frozen", "ema", "sync", "trust_region")
ADAPTER = "teacher"
FILE = "teacher.safetensors"


class SelfTeacher(Teacher):
    """One of the ``KINDS`` of teacher over a student ``model``.

    Args:
        model: the student, unwrapped, as it stands before the first step.
        kind: one of ``KINDS``.
        rate: of ``ema``, per optimizer step: teacher <- (1 - rate) teacher + rate student.
        prepare: wraps a separate teacher for the run's parallelism; identity unless given.
        sync_steps: of ``sync``: optimizer steps between copies.
        base_weight: w of ``trust_region`` (arXiv 2601.20802), logits (1 - w)·z_live + w·z_base.
        dtype: of a separate copy; the student's own unless given. In bfloat16 ``ema`` rounds at random, so as not to stall.
        device: where a separate copy is kept between its forwards; the student's unless given.
        seed: of that rounding.
    Raises:
        ValueError: an unknown kind, a setting out of range or without weights to apply to, a model whose weights cannot be
            copied in memory or whose logits cannot be mixed.
    """

    def __init__(
        self,
        model: Any,
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
        self._visits = device is not None
        if lora and self._follows:
            _add_adapter_copy(model)
        elif not lora and kind != "live":
            self._copy = prepare(_copy_of(model, dtype, device))

    @property
    def separate(self) -> nn.Module | None:
        return None if self._copy is None else unwrapped(self._copy)

    @property
    def _follows(self) -> bool:
        return self.kind in ("ema", "sync")

    def _is_student(self, part: int) -> bool:
        """Whether a part is the student as it stands; a trust region's first part is."""
        return self.kind == "live" or (self.kind == "trust_region" and part == 0)

    @contextmanager
    def acting(self, student: nn.Module, part: int = 0) -> Iterator[nn.Module]:
        with ExitStack() as stack:
            model = student
            if not self._is_student(part):
                if self._copy is not None:
                    model = self._copy
                if self._visits:
                    stack.enter_context(visiting(model, device_of(student)))
                if self._lora:
                    stack.enter_context(self._adapter())
            yield stack.enter_context(marking(model))

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
        if not self._follows:
            with self._student.disable_adapter():
                yield
            return
        active = self._student.active_adapter
        self._student.set_adapter(ADAPTER)
        try:
            yield
        finally:
            self._student.set_adapter(active)
            _freeze_teacher_adapter(self._student)

    def join(self, states: Sequence[list[Tensor]]) -> list[Tensor]:
        if self.kind != "trust_region":
            return states[0]
        w = self.base_weight
        if self._lora:  # one head reads both, and it is linear
            return [torch.lerp(live, base.to(live), w) for live, base in zip(*states, strict=True)]
        return [torch.cat([(1 - w) * live, w * base], dim=-1) for live, base in zip(*states, strict=True)]

    def head(self, student_head: Head, head_of: HeadOf) -> Head:
        if self._copy is None:
            if not self._lora or self._is_student(0):
                return student_head
            if not hasattr(self._student.get_output_embeddings(), "modules_to_save"):
                return student_head
            with self._adapter():  # a head trained beside the adapter: the teacher has its own
                return head_of(self._student)
        device = student_head.weight.device
        own = whole_head(head_of(self.separate), device)
        if self.kind != "trust_region":
            return own
        return stacked_head(whole_head(student_head, device), own, self.base_weight)

    @torch.no_grad()
    def update(self) -> None:
        if not self._follows or self.frozen_early:
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
                generator = generator_of(self.seed, self.updates, teacher.device)
            follow(teacher, student, self.rate, generator)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._lora:
            named = dict(self._student.named_parameters())
            for name, parameter in named.items():
                if ".default." in name:
                    yield named[name.replace(".default.", f".{ADAPTER}.")].data, parameter.data
        else:
            assert self.separate is not None
            teacher, student = self.separate, unwrapped(self._student)
            yield from zip((p.data for p in teacher.parameters()), (p.data for p in student.parameters()), strict=True)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.updates = int(state.get("updates", 0))

    def own_weights(self) -> dict[str, Tensor]:
        """What a checkpoint must keep: the weights of a teacher that follows, in their own precision. Shared tensors once."""
        if not self._follows:
            return {}
        named = dict((self._student if self._lora else unwrapped(self._copy)).named_parameters())
        return {name: p.data for name, p in named.items() if not self._lora or f".{ADAPTER}." in name}

    def save(self, folder: Path) -> None:
        weights = self.own_weights()
        if weights:
            save_file({name: _whole(tensor) for name, tensor in weights.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Raises ``ValueError`` where the checkpoint holds no teacher or one of another shape."""
        weights = self.own_weights()
        if not weights:
            return
        path = folder / FILE
        if not path.is_file():
            raise ValueError(
                f"{path}: missing, this checkpoint was written without an EMA teacher; start afresh or set teacher: frozen"
            )
        saved = load_file(path)
        if saved.keys() != weights.keys():
            raise ValueError(f"{path}: holds another model's weights; resume with the model it was trained from")
        for name, tensor in weights.items():
            tensor.copy_(_like(saved[name], tensor))


def _check(
    model: Any,
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
            f"teacher_sync_steps: {sync_steps}; teacher: sync needs the optimizer steps between its copies"
        )
    if not 0 <= base_weight <= 1:
        raise ValueError(f"teacher_base_weight: {base_weight} is not in [0, 1]")
    for name, value in {"teacher_dtype": dtype, "teacher_device": device}.items():
        if value is not None and (lora or kind == "live"):
            why = "with LoRA it shares the student's base" if lora else "a live one is the student"
            raise ValueError(f"{name}: the teacher has no weights of its own to keep elsewhere, {why}; leave it out")
    if kind == "trust_region":
        _check_mixable(model)


def _check_mixable(model: Any) -> None:
    """Raise ``ValueError`` unless mixing hidden states mixes logits."""
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None:
        raise ValueError("teacher: trust_region mixes logits, and this model's softcapped head is not linear; use ema")
    layer = model.get_output_embeddings()
    if hasattr(layer, "base_layer") or hasattr(layer, "modules_to_save"):
        raise ValueError(
            "teacher: trust_region needs one output head, and the adapter changes it; "
            "leave it out of target_modules and modules_to_save, or use ema"
        )


def _copy_of(model: Any, dtype: torch.dtype | None, device: torch.device | str | None) -> nn.Module:
    if any(p.numel() == 0 and getattr(p, "ds_id", None) is not None for p in model.parameters()):
        raise ValueError(
            "teacher: this kind needs the weights whole, DeepSpeed ZeRO-3 shards them; use FSDP, LoRA or teacher: live"
        )
    # Each tensor goes straight where and in what type it is kept: never a second set of the student's own.
    memo: dict[int, Any] = {}
    for p in model.parameters():
        if p.is_floating_point():
            kept = p.detach().to(device or p.device, dtype or p.dtype, copy=True)
            memo[id(p)] = nn.Parameter(kept, requires_grad=False)
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


def _add_adapter_copy(model: Any) -> None:
    model.add_adapter(ADAPTER, model.peft_config["default"])
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if ".default." in name:
            named[name.replace(".default.", f".{ADAPTER}.")].data.copy_(parameter.data)
    model.set_adapter("default")
    _freeze_teacher_adapter(model)


def _freeze_teacher_adapter(model: Any) -> None:
    # `set_adapter` makes the adapter it activates trainable; the optimizer must never see this one.
    for name, parameter in model.named_parameters():
        if f".{ADAPTER}." in name:
            parameter.requires_grad_(False)


def _whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu().contiguous()


def _like(saved: Tensor, tensor: Any) -> Tensor:
    if hasattr(tensor, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(saved.to(tensor.device), tensor.device_mesh, tensor.placements)
    return saved.to(tensor.device)
