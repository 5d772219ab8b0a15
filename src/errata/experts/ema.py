"""An exponential moving average of a student's weights that also works in bfloat16."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1 << 24
"""Elements updated at a time; bounds each of the three float32 temporaries to 64 MB."""


def update_generator(seed: int, update: int, device: torch.device) -> torch.Generator:
    """The random numbers of one update, a function of ``seed`` and ``update`` so that a resumed run draws the same."""
    return torch.Generator(device).manual_seed(random.Random(f"{seed}-{update}").getrandbits(32))


def ema_update(teacher: Tensor, student: Tensor, rate: float, generator: torch.Generator) -> None:
    """teacher <- (1 - rate) teacher + rate student, in place, on the teacher's device and in its precision.

    bfloat16 has 8 significant bits: rounding to the nearest value drops any change smaller than 1/512 of the weight, which at
    rate 0.01 is nearly all of them. So a bfloat16 teacher is rounded stochastically, without bias.

    Args:
        teacher, student: of the same shape; sharded in the same way, if they are.
        rate: in [0, 1].
        generator: for the rounding, on the teacher's device.
    """
    if teacher.dtype != torch.bfloat16:
        teacher.lerp_(student.to(teacher.device, teacher.dtype), rate)
        return
    for old, new in zip(_chunks(teacher), _chunks(student), strict=True):
        moved = torch.lerp(old.float(), new.to(old.device, torch.float32), rate)
        old.copy_(stochastic_round(moved, generator))


def stochastic_round(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 ``values`` rounded to one of their two bfloat16 neighbours at random, with ``values`` as the expectation."""
    bits = values.view(torch.int32)
    # bfloat16 is the upper half of float32; a carry out of the lower half is the step to the next larger magnitude.
    noise = torch.randint(1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).bfloat16()


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    yield from local.view(-1).split(CHUNK)  # type: ignore[no-untyped-call]
