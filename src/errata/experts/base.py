"""What the trainer asks of a teacher that gives its whole distribution: hidden states and the head that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errata.ops.scores import Head

HeadOf = Callable[[Any], Head]
"""A model, unwrapped -> its output head."""


class Teacher:
    """A teacher of one or more parts, each a module that is run over the student's tokens.

    For every part, ``with teacher.acting(student, part) as module`` runs it; ``join`` makes one of the parts' states, and
    ``head`` what turns those into the teacher's logits.
    """

    kind: str
    """What the recipe calls it."""
    parts: int = 1
    """Modules to run."""
    frozen_early: bool = False
    """Whether ``freeze`` was called."""

    @property
    def separate(self) -> nn.Module | None:
        """The teacher's own weights where it has any, unwrapped; ``None`` where it shares the student's."""
        raise NotImplementedError

    def acting(self, student: nn.Module, part: int = 0) -> AbstractContextManager[nn.Module]:
        """A part's module, in evaluation mode and without gradients; ``student`` is the wrapped student."""
        raise NotImplementedError

    def generating(self, student: nn.Module) -> AbstractContextManager[nn.Module]:
        """The module whose ``generate`` samples the teacher; ``student`` is unwrapped."""
        return self.acting(student)

    def join(self, states: Sequence[list[Tensor]]) -> list[Tensor]:
        """States (T, H') of rollouts, of the parts' states (T, H) of the same rollouts."""
        return states[0]

    def head(self, student_head: Head, head_of: HeadOf) -> Head:
        """The head of the joined states, whole, over the student's vocabulary and on its device."""
        raise NotImplementedError

    def update(self) -> None:
        """Follow the student. Call after every optimizer step."""

    def freeze(self) -> None:
        """Stop following the student from here on."""
        self.frozen_early = True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps besides weights, JSON-serialisable."""
        return {"kind": self.kind, "frozen_early": self.frozen_early}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ``ValueError`` where the checkpoint was written with another kind of teacher."""
        if state.get("kind") != self.kind:
            raise ValueError(
                f"teacher: the checkpoint's was {state.get('kind')}, this run's is {self.kind}; set --teacher"
            )
        self.frozen_early = bool(state["frozen_early"])

    def save(self, folder: Path) -> None:
        """Write the weights that only this run has."""

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""


@contextmanager
def marking(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in evaluation mode, without gradients."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(training)


@contextmanager
def visiting(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model's tensors on ``device`` inside and where they were after; nothing is copied back, for nothing changes."""
    home = [
        (module, name, tensor)
        for module in model.modules()
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    ]
    away: dict[int, Tensor] = {}  # tied weights stay tied
    try:
        for module, name, tensor in home:
            if id(tensor) not in away:
                moved = tensor.detach().to(device)
                away[id(tensor)] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
            setattr(module, name, away[id(tensor)])
        yield
    finally:
        for module, name, tensor in home:
            setattr(module, name, tensor)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next(model.parameters()).device


def unwrapped(model: Any) -> nn.Module:
    """The model inside whatever parallelism wraps it."""
    while hasattr(model, "module"):
        model = model.module
    return model  # type: ignore[no-any-return]
