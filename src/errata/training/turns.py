"""The teacher's pieces of a rollout: one for each of the policy's turns where the teacher is shown something else at each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.contexts import Rendered
from errata.records import Prompt


@dataclass(frozen=True, slots=True)
class Piece:
    """The tokens ``start`` to ``end`` of a rollout's completion, and the teacher's prompt that they follow."""

    row: int
    prompt: Prompt
    start: int
    end: int
    environment: str | None = None


def spans(mask: Tensor) -> list[tuple[int, int]]:
    """Runs of the policy's own tokens in a completion, its turns, as (start, end). ``mask`` is (T,) bool."""
    edges = torch.diff(mask.int(), prepend=mask.new_zeros(1).int(), append=mask.new_zeros(1).int())
    starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    return list(zip(starts, ends, strict=True))


def pieces(row: int, rendered: Rendered, mask: Tensor, length: int) -> list[Piece]:
    """The pieces of one rollout: the whole completion, or one for each turn where ``rendered`` has a prompt for each.

    A turn beyond the last of these prompts gets the last. A template may not separate a tool's answer from what follows, so
    there can be fewer runs of own tokens than turns.

    Args:
        mask: (T,) bool, the policy's own tokens.
        length: tokens of the completion, tool output included.
    """
    turns = spans(mask[:length]) if rendered.by_turn else []
    if not turns:
        return [Piece(row, rendered.prompt, 0, length, rendered.environment)]
    last = len(rendered.by_turn) - 1
    return [
        Piece(row, rendered.by_turn[min(n, last)], start, end, rendered.environment)
        for n, (start, end) in enumerate(turns)
    ]


def assemble(parts: Sequence[tuple[Piece, Tensor]], length: int) -> Tensor:
    """The states (T,H) of one rollout from those of its pieces, each (end,H); 0 at tokens of other turns than the policy's.

    Args:
        length: T.
    """
    first, state = parts[0]
    if first.start == 0 and first.end == length:
        return state
    states = state.new_zeros(length, state.shape[-1])
    for piece, state in parts:
        states[piece.start : piece.end] = state[piece.start : piece.end]
    return states
