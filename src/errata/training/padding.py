"""A model's last hidden states of a ragged batch, without computing its padding.

Flash attention takes all sequences in one row, kept apart by their positions. Other attention would compute every pair of that
row's tokens, so there the batch is run in groups of similar length. Values are those of the padded batch up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from errata.training.teacher_forward import length_batches

MIN_SAVED = 1024
"""Padding tokens below which a batch is run as it is: more, smaller products would cost more than they save."""

Run = Callable[..., Tensor]
"""Model inputs by name -> last hidden states (B,L,H)."""


_RECURRENT = ("mamba", "ssm", "linear_", "rwkv", "conv_", "xlstm")
"""Beginnings of a configuration's names that tell of layers which would read on across sequences."""


def packs(model: Any) -> bool:
    """Whether the model takes several sequences in one row: by flash attention in every layer, and nothing recurrent."""
    config = model.config.get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or ())}
    recurrent = any(name.startswith(_RECURRENT) for name in config.to_dict())
    flash = "flash" in str(getattr(config, "_attn_implementation", "") or "")
    return flash and not recurrent and kinds <= {"full_attention", "sliding_attention"}


def without_padding(run: Run, input_ids: Tensor, attention_mask: Tensor, *, packed: bool, grouped: bool) -> Tensor:
    """Hidden states (B,L,H) at the tokens of ``attention_mask``, zeros at padding.

    Args:
        input_ids, attention_mask: (B,L), padded on either side.
        packed: run all tokens as one row; the number of calls is then 1 on every process.
        grouped: run rows of similar length together, each sequence from the left; the number of calls depends on the lengths.
    """
    valid = attention_mask.bool()
    lengths = valid.sum(1).tolist()
    if not (packed or grouped) or valid.numel() - sum(lengths) < MIN_SAVED:
        return run(input_ids=input_ids, attention_mask=attention_mask)
    if packed:
        positions = (valid.cumsum(1) - 1)[valid][None]
        found = run(input_ids=input_ids[valid][None], attention_mask=None, position_ids=positions)[0]
        return _spread(found, valid.flatten().nonzero().squeeze(1), valid)
    states, places = [], []
    for rows in length_batches(lengths, len(lengths)):
        here = valid[rows]
        mask = torch.arange(lengths[rows[0]], device=valid.device) < here.sum(1, keepdim=True)
        ids = input_ids.new_zeros(mask.shape)
        ids[mask] = input_ids[rows][here]
        states.append(run(input_ids=ids, attention_mask=mask.to(attention_mask.dtype))[mask])
        row, column = here.nonzero(as_tuple=True)
        places.append(torch.tensor(rows, device=valid.device)[row] * valid.shape[1] + column)
    return _spread(torch.cat(states), torch.cat(places), valid)


def _spread(states: Tensor, places: Tensor, valid: Tensor) -> Tensor:
    """(N,H) at N places of the flattened (B,L) -> (B,L,H)."""
    out = states.new_zeros(valid.numel(), states.shape[-1]).index_copy(0, places, states)
    return out.view(*valid.shape, -1)
