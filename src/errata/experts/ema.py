"""Following a student's weights: an exponential moving average that does not stall in bfloat16."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 24
"""Elements updated at a time: 64 MB for each of three float32 temporaries, however large an embedding is."""


def generator_of(seed: int, update: int, device: torch.device) -> torch.Generator:
    """The random numbers of one update: a resumed run draws the same."""
    return torch.Generator(device).manual_seed(random.Random(f"{seed}-{update}").getrandbits(32))


def follow(teacher: Tensor, student: Tensor, rate: float, generator: torch.Generator) -> None:
    """teacher <- (1 - rate) teacher + rate student, in place, wherever and in whatever precision the teacher is kept.

    bfloat16 has 8 significant bits: a step smaller than 1/512 of the weight is rounded away, and at rate 0.01 nearly all
    are. So there the new weight is rounded up or down at random, up with the probability that makes its mean exact.
    """
    if teacher.dtype != torch.bfloat16:
        teacher.lerp_(student.to(teacher.device, teacher.dtype), rate)
        return
    for old, new in zip(_pieces(teacher), _pieces(student), strict=True):
        moved = torch.lerp(old.float(), new.to(old.device, torch.float32), rate)
        old.copy_(rounded_at_random(moved, generator))


def rounded_at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 -> one of the two bfloat16 neighbours, with ``values`` as the mean."""
    bits = values.view(torch.int32)
    # bfloat16 is the upper half of float32; a carry out of the lower half is the step to the next larger magnitude.
    noise = torch.randint(1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).bfloat16()


def _pieces(tensor: Any) -> Iterator[Tensor]:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # shards of both lie alike
    yield from local.view(-1).split(PIECE)
