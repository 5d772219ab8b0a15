"""The range of every setting of a recipe, errata's and those of TRL's and transformers' that it passes on.

Imports no torch: ``errata train`` checks a recipe against this table before it loads anything slow. Settings that are not
listed are checked by the type of their field (``ErrataConfig.__post_init__``).
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from errata.recipe.text import as_number, load_mapping
from errata.validate import Count, NonNegative, Positive, PositiveShare, Range, Share, Whole, check

_AtLeastTwo = Annotated[int, Range(2)]
_Seed = Annotated[int, Range(0, 2**32 - 1)]
_OrMinusOne = Annotated[int, Range(1, also=-1)]

RULES: dict[str, Any] = {
    # the optimizer and how long it runs
    "learning_rate": Share,  # 0 measures without learning
    "weight_decay": NonNegative,
    "adam_beta1": Share,
    "adam_beta2": Share,
    "adam_epsilon": Positive,
    "max_grad_norm": NonNegative,
    "warmup_steps": NonNegative,
    "max_steps": _OrMinusOne,
    "num_train_epochs": Positive,
    "seed": _Seed,
    "data_seed": _Seed | None,
    # batches
    "per_device_train_batch_size": Count,
    "per_device_eval_batch_size": Count,
    "gradient_accumulation_steps": Count,
    "steps_per_generation": Count | None,
    "generation_batch_size": Count | None,
    "num_generations": _AtLeastTwo,
    "num_iterations": Count,
    # sampling
    "max_completion_length": Count,
    "max_tool_calling_iterations": Count | None,
    "temperature": Positive,
    "top_p": PositiveShare,
    "top_k": Annotated[int, Range(0, 1_000_000, also=-1)],
    "min_p": Share | None,
    "repetition_penalty": Positive,
    "vllm_mode": Literal["server", "colocate"],
    # the loss
    "beta": NonNegative,
    "epsilon": NonNegative,
    "epsilon_high": NonNegative | None,
    "delta": Positive | None,
    "label_smoothing_factor": Share,
    "neftune_noise_alpha": Positive | None,
    "top_entropy_quantile": Share,
    "importance_sampling_level": Literal["token", "sequence"],
    "reward_weights": list[float] | None,
    # when things are written
    "save_steps": Positive,
    "save_total_limit": Count | None,
    "logging_steps": Positive,
    "eval_steps": Positive | None,
    "eval_delay": NonNegative,
    # errata's own
    "verifier_timeout_s": Positive,
    "environment_timeout_s": Positive | None,
    "verifier_isolation": Literal["auto", "process", "none"],
    "critic_max_tokens": Count,
    "prompt_format": Literal["given", "chat"],
    "expert_on_failure": Literal["skip", "self", "pause"],
    "replay_capacity": Count | None,
    "replay_share": Annotated[float, Range(0, 100)],
    "replay_limit": Positive,
    "teacher": Literal["live", "frozen", "ema", "sync", "trust_region"] | None,
    "teacher_rate": Share | None,
    "teacher_sync_steps": Count | None,
    "teacher_base_weight": Share,
    "teacher_dtype": Literal["float32", "bfloat16"] | None,
    "teacher_device": Literal["cpu"] | None,
    "teacher_freeze_below": Share | None,
    "preflight": Whole,
    "guard": Literal["none", "warn", "freeze", "reward", "best", "stop"],
    "max_teacher_prompt_length": Count | None,
    "eval_problems": Count | None,
    "eval_k": Annotated[int, Range(1, 100_000)],
    "eval_temperature": NonNegative | None,
    "eval_top_p": PositiveShare | None,
    "eval_batch_size": Count,
    "eval_teacher_problems": Whole,
    "rollouts_saved": Whole,
    "rollouts_max_mb": Positive,
    # the model
    "dtype": Literal["auto", "float32", "float16", "bfloat16"] | None,
    "lora_r": Count,
    "lora_alpha": Count,
    "lora_dropout": Share,
}

_MAPPINGS = (
    *("method_args", "task_args", "expert_args", "verifiers", "context_args", "columns"),
    *("env", "on_gpu", "compare"),
)
"""Keys of a recipe that hold mappings."""


_PACKAGES = {
    "use_vllm": "vllm",
    "deepspeed": "deepspeed",
    "use_liger_kernel": "liger_kernel",
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
}
"""Settings that need a package which errata does not install."""


def check_packages(settings: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` naming a setting whose package is not installed."""
    wanted = [(name, package) for name, package in _PACKAGES.items() if settings.get(name)]
    trackers = settings.get("report_to") or []
    wanted += [
        ("report_to", tracker)
        for tracker in ([trackers] if isinstance(trackers, str) else trackers)
        if tracker in ("wandb", "trackio", "tensorboard", "mlflow", "comet_ml", "swanlab")
    ]
    for name, package in wanted:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise ValueError(f"{name}: the package {package} is not installed; install it, or leave the setting out")


def check_given(settings: Mapping[str, Any], where: str = "") -> None:
    """Check what a recipe says against ``RULES``. Numbers written as text are left to the parser where they are none.

    Raises ``ValueError`` naming the setting, what it must be and what it is.
    """
    for name, value in settings.items():
        if name in _MAPPINGS and value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{where}{name}: must be a mapping of names to values, got {value!r:.80}")
        if name == "on_gpu" and isinstance(value, Mapping):
            check_given(value, where)
        elif name in RULES:
            check(f"{where}{name}", value, RULES[name])
        elif name == "output_dir":
            check_output(f"{where}{name}", value)
        elif name in ("deepspeed", "fsdp_config"):
            check_json_file(f"{where}{name}", value)
        elif name.endswith("_kwargs") and not isinstance(value, Mapping | str | None):
            raise ValueError(f"{where}{name}: must be a mapping of names to values, got {value!r:.80}")


def check_output(name: str, value: object) -> None:
    """Raises ``ValueError`` unless ``value`` can be the name of a run's directory."""
    if value is None:
        return
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{name}: must be the name of a directory, got {value!r:.80}")
    for path in (Path(value), *Path(value).parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{name}: {path} is a file; choose another directory for the run")


def check_json_file(name: str, value: object) -> None:
    """Raises ``ValueError`` unless ``value`` is null, a mapping, or the path of a JSON file that holds one."""
    if value is None or isinstance(value, Mapping):
        return
    if not isinstance(value, str):
        raise ValueError(f"{name}: must be the path of a JSON file, got {value!r:.80}")
    if value.lstrip().startswith("{") or not value:
        return
    try:
        found = json.loads(Path(value).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{name}: cannot read {value!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {value} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name}: {value} must hold a JSON object, not a {type(found).__name__}")


def check_before_loading(path: str | Path | None, overrides: Sequence[str] = ()) -> None:
    """Check a recipe's file, if there is one, and the ``--name value`` after it, before torch is loaded.

    Raises ``ValueError``.
    """
    if path is not None:
        check_given(load_mapping(Path(path)), f"{path}: ")
    words = [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for name, value in pairwise(words):
        key = name.removeprefix("--").replace("-", "_")
        # Lists take several words, which the parser puts together.
        if name.startswith("--") and key in RULES and key != "reward_weights":
            check(f"--{key}", _value(value), RULES[key])
        elif name == "--output_dir":
            check_output(name, value)
        elif key in ("deepspeed", "fsdp_config"):
            check_json_file(f"--{key}", value)
        elif name.startswith("--") and key.endswith("_kwargs") and not isinstance(_value(value), Mapping):
            raise ValueError(f"--{key}: must be a mapping such as '{{\"name\": 1}}', got {value!r:.80}")


def _value(text: str) -> Any:
    try:
        return as_number(yaml.safe_load(text))
    except yaml.YAMLError:
        return text
