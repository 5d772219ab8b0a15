"""Tokenizers that differ, and a model that writes exactly what a table says."""

from __future__ import annotations

import torch
from tests.tiny import CHAT, build_tokenizer

CHARACTERS = build_tokenizer()
"""One token a character."""


def build_words():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    base = ["<p>", "<e>", "<|user|>", "<|end|>", "<|assistant|>", *"helo12="]
    merges = [("h", "e"), ("he", "l"), ("l", "o"), ("hel", "lo"), ("1", "2")]
    vocabulary = {t: i for i, t in enumerate([*base, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<p>",
        eos_token="<e>",
        additional_special_tokens=["<|user|>", "<|end|>", "<|assistant|>"],
        padding_side="left",
    )
    fast.chat_template = CHAT
    return fast


WORDS = build_words()
"""A few merges: hel, lo, hello, 12."""


def build_chain(tokenizer, following: dict[str, str]):
    """A model that after the token ``a`` always writes ``following[a]``; after any other token it ends."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    size = len(tokenizer)
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=4,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                p.zero_()  # the residual stream carries the last token alone
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for a in range(size):
            b = following.get(tokenizer.convert_ids_to_tokens(a), tokenizer.eos_token)
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(b), a] = 20.0
    return model


def saved(folder, model, tokenizer) -> str:
    """The path of a checkpoint as the hub has them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
