"""What the scripts that pre-train a small policy share: its tokenizer, its architecture and the optimizer's loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

LEARNING_RATE = 4e-3
WARMUP = 50
"""Optimizer steps in which the learning rate rises to its cosine."""


def make_tokenizer(
    special: Sequence[str], chat_template: str, *, words: Sequence[str] = (), length: int
) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, and per word of ``words``.

    Args:
        special: the names of special tokens: first the padding, second the unknown token, last the end of a turn.
        length: of the longest text, in tokens.
    """
    vocabulary = {token: k for k, token in enumerate([*special, "\n", *map(chr, range(32, 127))])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=special[1]))
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=special[0],
        unk_token=special[1],
        eos_token=special[-1],
        padding_side="left",
        model_max_length=length,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, *, width: int, layers: int) -> Qwen3ForCausalLM:
    """A Qwen3 of this width, with four heads and random weights, that samples at temperature 1."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=width // 4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def optimize(model: nn.Module, steps: int, backward: Callable[[int], tuple[float, str]]) -> list[float]:
    """Train ``model`` in place by AdamW with warm-up and a cosine, and return each step's loss.

    Args:
        backward: adds a step's gradients, and returns its loss and what a line about it says.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
    started, losses = time.monotonic(), []
    for step in range(steps):
        decay = 0.5 * (1.0 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * decay
        loss, said = backward(step)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        if step % 50 == 49:
            print(
                f"{time.monotonic() - started:5.0f} s  step {step + 1}/{steps}  loss {loss:.3f}  {said}".rstrip(),
                flush=True,
            )
    return losses
