"""Where a run's policy and tokenizer come from, each checked before any compute is spent."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def model_path(name: str) -> str:
    """The directory or hub id that ``name`` stands for; ``house`` is the policy this package carries.

    A run directory that is not finished stands for its newest undamaged checkpoint. Raises ``ValueError`` for a directory
    that does not exist or holds no model.
    """
    if name == "house":
        from errata.house import HOUSE_PATH

        return str(HOUSE_PATH)
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
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, padding_side="left", truncation_side="left", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"model: cannot load {path!r}: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(path: str, **kwargs: Any) -> Any:
    """A causal language model, with its PEFT adapter where ``path`` holds one.

    Raises ``ValueError`` in one line where it cannot be loaded.
    """
    try:
        if (Path(path) / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            return AutoPeftModelForCausalLM.from_pretrained(path, is_trainable=True, **kwargs)
        AutoConfig.from_pretrained(path, trust_remote_code=bool(kwargs.get("trust_remote_code")))
        return AutoModelForCausalLM.from_pretrained(path, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: cannot load {path!r}: {str(error).splitlines()[0]}") from error
