"""The teacher's forward pass: from prompts and completions to the hidden states at the student's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

MAX_PADDING = 0.1
"""Padding allowed in one teacher forward, as a share of its tokens."""

Sequences = Sequence[tuple[int, list[int]]]
"""Of each rollout the number of prompt tokens, and prompt followed by completion."""


def teacher_sequences(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[tuple[int, list[int]]]:
    """(length of the prompt, prompt + completion) per rollout: the completion's tokens are the student's own, untouched.

    Raises ``ValueError`` for an empty prompt: then there is no state that predicts the first completion token.
    """
    built = []
    for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if not prompt:
            raise ValueError(f"rollout {index}: its teacher prompt has no tokens; check context_template")
        built.append((len(prompt), [*prompt, *completion]))
    return built


def length_batches(lengths: Sequence[int], max_rows: int, max_padding: float = MAX_PADDING) -> Iterator[list[int]]:
    """Indices in batches of similar length: at most ``max_rows`` each, at most ``max_padding`` of it padding.

    With a ``max_padding`` of 1 their number depends on the number of lengths alone.
    """
    batch: list[int] = []
    used = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        padded = lengths[batch[0]] * (len(batch) + 1) if batch else lengths[index]
        if batch and (len(batch) == max_rows or used + lengths[index] < (1 - max_padding) * padded):
            yield batch
            batch, used = [], 0
        batch.append(index)
        used += lengths[index]
    if batch:
        yield batch


def hidden_at_completions(
    run: Callable[[dict[str, Tensor]], Tensor],
    sequences: Sequences,
    *,
    max_rows: int,
    device: torch.device,
    max_padding: float = MAX_PADDING,
) -> tuple[list[Tensor], float]:
    """The states (T_i, H) from which each completion token was predicted, and the share of padding computed.

    Args:
        run: model inputs -> last hidden states (B, L, H).
        sequences: of ``teacher_sequences``.
        max_rows, max_padding: see ``length_batches``.
    """
    states: list[Tensor | None] = [None] * len(sequences)
    lengths = [len(ids) for _, ids in sequences]
    computed = 0
    for batch in length_batches(lengths, max_rows, max_padding):
        longest = max(lengths[i] for i in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, : lengths[i]] = torch.tensor(sequences[i][1])
            mask[row, : lengths[i]] = 1
        hidden = run({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
        computed += ids.numel()
        for row, i in enumerate(batch):
            start, end = sequences[i][0] - 1, lengths[i] - 1
            states[i] = hidden[row, start:end].clone()  # so that the padded rest is freed
    padding = 1 - sum(lengths) / computed if computed else 0.0
    return [s for s in states if s is not None], padding


def padded_states(states: Sequence[Tensor | None], length: int, like: Tensor, *, width: int | None = None) -> Tensor:
    """(B, T, H') of ragged states, zeros where a rollout has none or ends; ``like`` is the student's (B, T, H).

    ``width`` is H', H unless given.
    """
    out = like.new_zeros(len(states), length, like.shape[-1] if width is None else width)
    for row, state in enumerate(states):
        if state is not None:
            out[row, : state.shape[0]] = state.to(out)
    return out
