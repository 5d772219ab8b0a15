"""The policy as its own teacher: live, frozen at its first weights, or an exponential moving average of itself.

Memory beside the student's: live 0; frozen and ema one more set of weights, without gradients or optimizer state. With
LoRA: frozen is the base with the adapter off (0), ema one more adapter, which starts as a copy *of the student's adapter*.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ADAPTER = "teacher"
FILE = "teacher.safetensors"


class SelfTeacher:
    """One of the three teachers over a student ``model``.

    Args:
        model: the student, unwrapped, as it stands before the first step.
        kind: ``live``, ``frozen`` or ``ema``.
        rate: of ``ema``, per optimizer step: teacher <- (1 - rate) teacher + rate student.
        prepare: wraps a separate teacher for the run's parallelism; identity unless given.
    Raises:
        ValueError: an unknown kind; a sharded model whose weights cannot be copied in memory.
    """

    def __init__(
        self, model: Any, kind: str, rate: float = 0.0, prepare: Callable[[nn.Module], nn.Module] = lambda m: m
    ) -> None:
        if kind not in ("live", "frozen", "ema"):
            raise ValueError(f"teacher: {kind!r} is none of live, frozen, ema")
        self.kind, self.rate, self.frozen_early = kind, rate, False
        self._student = model
        self._lora = hasattr(model, "peft_config")
        self._copy: nn.Module | None = None
        if self._lora and kind == "ema":
            _add_adapter_copy(model)
        elif not self._lora and kind != "live":
            self._copy = prepare(_copy_of(model))

    @property
    def separate(self) -> nn.Module | None:
        """The teacher's own weights where it has any, unwrapped; ``None`` where it shares the student's."""
        return None if self._copy is None else _unwrapped(self._copy)

    @contextmanager
    def acting(self, student: nn.Module) -> Iterator[nn.Module]:
        """The module to run as teacher, in evaluation mode and without gradients; ``student`` is the wrapped student."""
        model = student if self._copy is None else self._copy
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), self._adapter():
                yield model
        finally:
            model.train(training)

    @contextmanager
    def _adapter(self) -> Iterator[None]:
        if not self._lora or self.kind == "live":
            yield
        elif self.kind == "frozen":
            with self._student.disable_adapter():
                yield
        else:
            active = self._student.active_adapter
            self._student.set_adapter(ADAPTER)
            try:
                yield
            finally:
                self._student.set_adapter(active)
                _freeze_teacher_adapter(self._student)

    @torch.no_grad()
    def update(self) -> None:
        """Follow the student by one EMA step. Call after every optimizer step."""
        if self.kind != "ema" or self.frozen_early:
            return
        for teacher, student in self._pairs():
            teacher.lerp_(student.to(teacher.dtype), self.rate)

    def freeze(self) -> None:
        """Stop following the student from here on."""
        self.frozen_early = True

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._lora:
            named = dict(self._student.named_parameters())
            for name, parameter in named.items():
                if ".default." in name:
                    yield named[name.replace(".default.", f".{ADAPTER}.")].data, parameter.data
        else:
            assert self._copy is not None
            teacher, student = _unwrapped(self._copy), _unwrapped(self._student)
            yield from zip((p.data for p in teacher.parameters()), (p.data for p in student.parameters()), strict=True)

    def _own_weights(self) -> dict[str, Tensor]:
        """What a checkpoint must keep: the moving average, in its own precision. Shared tensors once."""
        if self.kind != "ema":
            return {}
        named = dict((self._student if self._lora else _unwrapped(self._copy)).named_parameters())
        return {name: p.data for name, p in named.items() if not self._lora or f".{ADAPTER}." in name}

    def save(self, folder: Path) -> None:
        weights = self._own_weights()
        if weights:
            save_file({name: _whole(tensor) for name, tensor in weights.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Raises ``ValueError`` where the checkpoint holds no teacher or one of another shape."""
        weights = self._own_weights()
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


def _copy_of(model: Any) -> nn.Module:
    if any(p.numel() == 0 and getattr(p, "ds_id", None) is not None for p in model.parameters()):
        raise ValueError(
            "teacher: frozen and ema need the weights whole, DeepSpeed ZeRO-3 shards them; use FSDP, LoRA or teacher: live"
        )
    # A forward patched onto the instance would still run the student's weights.
    patched = model.__dict__.pop("forward", None)
    try:
        teacher: nn.Module = copy.deepcopy(model)
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


def _unwrapped(model: Any) -> nn.Module:
    while hasattr(model, "module"):
        model = model.module
    return model  # type: ignore[no-any-return]


def _whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu().contiguous()


def _like(saved: Tensor, tensor: Any) -> Tensor:
    if hasattr(tensor, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(saved.to(tensor.device), tensor.device_mesh, tensor.placements)
    return saved.to(tensor.device)
