"""``errata doctor``: what this machine has of what errata can use, and a test of a few seconds. For reports of problems.

A check that fails says so in its line and does not end the command. Nothing is downloaded, and nothing about the user is printed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable
from urllib.parse import urlparse

PACKAGES = ("errata", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "numpy")
OPTIONAL = ("vllm", "deepspeed", "flash_attn", "liger_kernel", "bitsandbytes", "sympy", "matplotlib", "openai", "wandb")
HUB_TIMEOUT_S = 3.0


def doctor() -> int:
    """Print one line for each check. Returns 1 if the self-test failed, else 0."""
    failed = False
    for name, check in CHECKS.items():
        try:
            said = check()
        except Exception as error:
            said = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            failed |= check is self_test
        print(f"{name:<12} {said}", flush=True)
    return int(failed)


def system() -> str:
    """The operating system, Python and the cores."""
    return f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores"


def packages() -> str:
    """Versions of the packages that errata needs."""
    return ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in PACKAGES)


def optional() -> str:
    """Versions of the packages that some settings need."""
    found = {name: _version(name) for name in OPTIONAL if importlib.util.find_spec(name) is not None}
    missing = [name for name in OPTIONAL if name not in found]
    there = ", ".join(f"{name} {version or '?'}" for name, version in found.items())
    return f"{there or 'none'}; not installed: {', '.join(missing) or 'none'}"


def torch_build() -> str:
    """How torch was built, and the GPUs that it sees."""
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    if not torch.cuda.is_available():
        return f"{built}; no GPU"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return f"{built}; " + ", ".join(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in gpus)


def isolation() -> str:
    """How programs are isolated, or why they cannot be."""
    from errata.feedback.sandbox.run import _isolation

    how, why_not = _isolation()
    return how or f"none, so programs are not run: {why_not}"


def disk() -> str:
    """Free space in the working directory and in the hub's cache."""
    cache = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    while not os.path.isdir(cache):
        cache = os.path.dirname(cache) or "."
    here, there = (shutil.disk_usage(path).free / 1e9 for path in (".", cache))
    return f"{here:.0f} GB free here, {there:.0f} GB free for the hub's cache"


def hub() -> str:
    """Whether the hub answers."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "not tried: HF_HUB_OFFLINE is set"
    address = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), HUB_TIMEOUT_S).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached: {error}"
    return f"{address.hostname} can be reached"


def self_test() -> str:
    """Judge a right and a wrong answer of a task, and take one step with the policy that comes with errata."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from errata import tasks
    from errata.house import HOUSE_PATH

    logging.disable_progress_bar()
    started = time.monotonic()
    (row,) = tasks.load("rulebook/new-rule", split="test").select([0])
    columns = {name: [value, value] for name, value in row.items() if name != "prompt"}
    scores = [
        verdict.score
        for verdict in tasks.verifier("rulebook/new-rule")(completions=[row["reference"], "wrong"], **columns)
    ]
    if scores != [1.0, 0.0]:
        raise RuntimeError(f"a right and a wrong answer were scored {scores}")
    tokenizer = AutoTokenizer.from_pretrained(HOUSE_PATH)
    model = AutoModelForCausalLM.from_pretrained(HOUSE_PATH).to("cuda" if torch.cuda.is_available() else "cpu")
    batch = tokenizer([str(row["reference"])], return_tensors="pt").to(model.device)
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        loss = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    if not losses[1] < losses[0]:
        raise RuntimeError(f"the loss did not fall in a step: {losses[0]:.4f}, then {losses[1]:.4f}")
    return f"passed in {time.monotonic() - started:.1f} s"


CHECKS: dict[str, Callable[[], str]] = {
    "system": system,
    "packages": packages,
    "optional": optional,
    "torch": torch_build,
    "isolation": isolation,
    "disk": disk,
    "hub": hub,
    "self-test": self_test,
}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None
