"""The interface of a teacher that gives its whole distribution: hidden states, and the output head that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errata.ops.scores import Head

HeadOf = Callable[[nn.Module], Head]
"""A function from an unwrapped model to its output head."""


class Teacher:
    """A teacher made of one or more models ("parts") that are run over the student's tokens.

    For every part, run the model of ``with teacher.acting(student, part) as model``. ``join`` combines the parts' hidden states,
    and ``head`` turns the combined states into the teacher's logits.
    """

    kind: str
    """The teacher's name in a recipe, e.g. ``"ema"``; a checkpoint can only be resumed with the same kind."""
    parts: int = 1
    """Number of models to run."""
    frozen_early: bool = False
    """Whether ``freeze`` was called."""

    @property
    def separate(self) -> nn.Module | None:
        """The teacher's own weights, unwrapped; ``None`` where it uses the student's."""
        raise NotImplementedError

    def acting(self, student: nn.Module, part: int = 0) -> AbstractContextManager[nn.Module]:
        """A context in which the part's model is ready to run, in evaluation mode and without gradients.

        Args:
            student: the student as wrapped for training.
            part: number of the part, below ``parts``.
        """
        raise NotImplementedError

    def generating(self, student: nn.Module) -> AbstractContextManager[nn.Module]:
        """A context with the model whose ``generate`` samples from the teacher; ``student`` is unwrapped."""
        return self.acting(student)

    def join(self, states: Sequence[list[Tensor]]) -> list[Tensor]:
        """Combine the parts' hidden states.

        Args:
            states: for each part, a (T, H) tensor per rollout.
        Returns:
            A (T, H') tensor per rollout, for the head of width H' that ``head`` returns.
        """
        return states[0]

    def head(self, student_head: Head, head_of: HeadOf) -> Head:
        """The head of the joined states, over the student's V tokens, on the device of ``student_head``.

        Collective where weights are sharded: call it on every rank.
        """
        raise NotImplementedError

    def head_changes(self, student_head: Head) -> bool:
        """Whether the next optimizer steps change what ``head`` returns."""
        return False

    def update(self) -> None:
        """Update the teacher from the student's current weights. Call it after every optimizer step."""

    def freeze(self) -> None:
        """Stop updating the teacher."""
        self.frozen_early = True

    def state_dict(self) -> dict[str, Any]:
        """The state of a checkpoint besides weights, JSON-serialisable."""
        return {"kind": self.kind, "frozen_early": self.frozen_early}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a ``state_dict``. Raises ``ValueError`` if another kind of teacher wrote it."""
        if state.get("kind") != self.kind:
            raise ValueError(
                f"teacher: the checkpoint's was {state.get('kind')}, this run's is {self.kind}; set --teacher"
            )
        self.frozen_early = bool(state["frozen_early"])

    def save(self, folder: Path, *, write: bool = True) -> None:
        """Write the weights that training changed to ``folder``; nothing for a teacher that has none.

        Collective where weights are sharded: call it on every rank, with ``write`` on one of them.
        """

    def load(self, folder: Path) -> None:
        """Read the weights that ``save`` wrote."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """A context with ``model`` in evaluation mode and without gradients; its mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        model.train(training)


@contextmanager
def moved_to(model: nn.Module, device: torch.device) -> Iterator[None]:
    """A context with copies of the model's tensors on ``device``; the originals are put back afterwards, unchanged."""
    originals = [
        (module, name, tensor)
        for module in model.modules()
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    ]
    copies: dict[int, Tensor] = {}  # by the original's id, so that tied weights stay tied
    try:
        for module, name, tensor in originals:
            if id(tensor) not in copies:
                moved = tensor.detach().to(device)
                copies[id(tensor)] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
            setattr(module, name, copies[id(tensor)])
        yield
    finally:
        for module, name, tensor in originals:
            setattr(module, name, tensor)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its parallelism wrappers (DDP, DeepSpeed)."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model
