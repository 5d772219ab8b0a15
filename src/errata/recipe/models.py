"""Where a run's policy and tokenizer come from, each checked before any compute is spent."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from errata.models import DRAWERS_PATH, smollm2

logger = logging.getLogger(__name__)


def model_path(name: str) -> str:
    """The directory or hub id that ``name`` stands for; ``house`` and ``drawers`` are the policies this package carries,
    ``smollm2`` the one it fetches (``errata.models``).

    A run directory that is not finished stands for its newest undamaged checkpoint. Raises ``ValueError`` for a directory
    that does not exist or holds no model.
    """
    if name == "house":
        from errata.house import HOUSE_PATH

        return str(HOUSE_PATH)
    if name == "drawers":
        return DRAWERS_PATH
    if name in smollm2.NAMES:
        return smollm2.smollm2_path(name)
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
            return str(path)
        from errata.training.checkpoint import newest

        found = newest(path)
        for note in found.notes:
            logger.warning("%s: %s", name, note)
        if found.checkpoint is not None:
            return str(found.checkpoint)
        raise ValueError(f"model: {name} holds neither a config.json nor a finished checkpoint")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()
    if looks_local:
        raise ValueError(
            f"model: no directory {name!r}; give an existing one, a hub id such as Qwen/Qwen3-8B, or `house`"
        )
    return name


def load_tokenizer(path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in ``path``, padding on the left. Raises ``ValueError`` in one line where there is none that works."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, padding_side="left", truncation_side="left", trust_remote_code=trust_remote_code
        )
    except Exception as error:  # damaged files raise whatever their reader does
        raise ValueError(f"model: cannot load the tokenizer of {path!r}: {one_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"model: the tokenizer of {path!r} has no end-of-sequence token, so no answer would end; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_chat_template(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> None:
    """Raises ``ValueError`` in one line where a prompt of messages cannot be put into the tokenizer's chat template."""
    if isinstance(prompt, str):
        return
    if not tokenizer.chat_template:
        raise ValueError(
            "model: its tokenizer has no chat template, and the prompts are messages; use the instruction-tuned model, "
            "add a chat_template.jinja to its directory, or give prompts as plain text"
        )
    other = [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1].get('content')} and more"}]
    try:
        text, changed = (
            tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in (prompt, other)
        )
    except Exception as error:
        raise ValueError(
            f"model: its chat template fails on the first prompt: {one_line(error)}; mend the template or the prompt's roles"
        ) from error
    if not str(text).strip():
        raise ValueError("model: its chat template makes an empty text of the first prompt; mend chat_template.jinja")
    if text == changed:
        raise ValueError("model: its chat template leaves out what the prompt says; mend chat_template.jinja")


def load_model(path: str, **kwargs: Any) -> Any:
    """A causal language model, with its PEFT adapter where ``path`` holds one.

    Raises ``ValueError`` in one line where it cannot be loaded, lacks weights or has some that are not finite.
    """
    try:
        if (Path(path) / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            model = AutoPeftModelForCausalLM.from_pretrained(path, is_trainable=True, **kwargs)
            lacking: set[str] = set()
        else:
            AutoConfig.from_pretrained(path, trust_remote_code=bool(kwargs.get("trust_remote_code")))
            model, found = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **kwargs)
            lacking = set(found["missing_keys"])
    except (
        Exception
    ) as error:  # damaged files raise whatever their reader does: safetensors, torch, json, KeyError, ...
        raise ValueError(f"model: cannot load {path!r}: {one_line(error)}") from error
    if lacking:
        raise ValueError(
            f"model: {path!r} lacks {len(lacking)} of its weights, such as {min(lacking)!r}, which would be random; "
            "it must be a whole causal language model, not an encoder or a part of one"
        )
    check_finite(model, path)
    return model


def check_finite(model: Any, path: str) -> None:
    """Raises ``ValueError`` naming a weight that holds NaN or infinity."""
    for name, weight in model.named_parameters():
        # The sum is one pass without a copy; only if it is not finite do the entries themselves matter.
        values = weight.detach()
        if not values.is_floating_point() or values.is_meta or values.sum(dtype=torch.float32).isfinite():
            continue
        if not values.isfinite().all():
            raise ValueError(f"model: weight {name!r} of {path!r} holds NaN or infinity; use an undamaged copy")


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ``ValueError`` where the tokenizer has tokens that the model does not know."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if 0 < rows <= largest:
        raise ValueError(
            f"model: its tokenizer has ids up to {largest}, and the model knows {rows} tokens; "
            "use the tokenizer that belongs to the model"
        )


def longest_prompt(model: Any, max_completion_length: int) -> int | None:
    """Tokens that a prompt may have so that an answer fits behind it in what the model can read; ``None``: no limit is known.

    At least half of what it can read, also where the answers may be longer.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return max(positions - max_completion_length, positions // 2)


def fewest_bytes(limit: int) -> int:
    """Bytes of a prompt below which it surely has at most ``limit`` tokens, with what a chat template adds."""
    return limit // 2


def one_line(error: BaseException) -> str:
    """An exception's kind and the first line of what it says, with the second where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines[:1] and lines[0].endswith(":") else 1])
    kind = type(error).__name__
    return said if isinstance(error, OSError | ValueError) and said else f"{kind}: {said}" if said else kind
