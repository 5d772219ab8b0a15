"""Recipes: YAML with TRL's own argument names plus ours, read by TRL's parser, checked before any compute is spent."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig, TrlParser
from trl.scripts.grpo import GRPOScriptArguments

from errata.recipe.config import ErrataConfig
from errata.recipe.settings import RULES, check_given
from errata.recipe.text import as_number, load_mapping, recipe_file
from errata.validate import check, hints_of, is_plain, nearest

NESTED = ("method_args", "task_args", "expert_args", "verifiers", "context_args", "columns")
_FILES = (
    *("dataset_name", "eval_dataset_name", "task_path", "verifier", "verifiers", "method", "correction", "tools"),
    *("environment", "context_template", "critic_template"),
)
"""Settings that may name a file, alone or before ``:function``: looked for here, and then in the recipe's folder."""
_FOLDERS = ("dataset_name", "eval_dataset_name", "task_path")
"""Those of them that may name a folder, where the others' names may be a preset's or a module's."""
_TRL_MODEL = "model_name_or_path"


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe."""

    config: ErrataConfig
    model: ModelConfig
    script: GRPOScriptArguments
    """TRL's own data arguments: ``dataset_name``, ``reward_funcs``, ... for those who bring a TRL recipe."""
    mixture: DatasetMixtureConfig
    """TRL's ``datasets``."""
    given: dict[str, Any]
    """What the recipe and the command line said, before defaults."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables (the recipe's ``env``), set by the command that trains or evaluates."""

    def set_environment(self) -> None:
        """Set the recipe's environment variables in this process."""
        os.environ.update(self.environment)


_KINDS = (ErrataConfig, ModelConfig, GRPOScriptArguments, DatasetMixtureConfig)


class _Parser(TrlParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def read(path: str | Path | None, overrides: Sequence[str] = (), *, gpu: bool | None = None) -> Recipe:
    """The recipe at ``path`` with ``--key value`` overrides; ``--method_args.credit mean`` reaches into a mapping, and
    ``--method_args "{credit: mean, cost: ce}"`` sets several of its keys.

    A recipe's mapping ``on_gpu`` holds what replaces its other settings where there is a CUDA device, so that one file
    serves the paper's run and a trial on a laptop. Another ``--method`` than the recipe's leaves its ``method_args`` behind,
    and gives the run a name of its own. ``gpu`` says whether there is a device, instead of torch.

    Raises:
        ValueError: a missing file, malformed YAML (with its line), an unknown key (with the nearest known one), a value
            of the wrong type, or settings that contradict each other.
    """
    settings = load_mapping(Path(path)) if path is not None else {}
    folder = Path.cwd() if path is None else recipe_file(Path(path)).resolve().parent
    for place in (str(folder), str(Path.cwd())):  # a user's own modules, as in TRL's scripts
        if place not in sys.path:
            sys.path.insert(0, place)
    return recipe_of(files_beside(settings, folder), overrides, where=str(path), gpu=gpu)


def files_beside(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings, where a file that is not in the working directory, but in the recipe's ``folder``, has that folder."""
    return {k: _beside(v, folder, k in _FOLDERS) if k in _FILES else v for k, v in settings.items()}


def _beside(value: Any, folder: Path, may_be_folder: bool) -> Any:
    """A name of a file that is not here, but is in ``folder``, with that folder."""
    if isinstance(value, list):
        return [_beside(item, folder, may_be_folder) for item in value]
    if isinstance(value, dict):
        return {key: _beside(item, folder, may_be_folder) for key, item in value.items()}
    if not isinstance(value, str) or folder == Path.cwd() or "\n" in value or "{" in value:  # a template's text
        return value
    file, colon, function = value.rpartition(":") if ".py:" in value else (value, "", "")
    there = folder / file
    found = there.exists() if may_be_folder else there.is_file()
    return f"{there}{colon}{function}" if found and not Path(file).expanduser().exists() else value


def recipe_of(
    settings: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "recipe", gpu: bool | None = None
) -> Recipe:
    """The recipe of settings given as a mapping, with ``--key value`` overrides. As ``read``; ``where`` names it in errors."""
    check_given(settings, f"{where}: ")
    given = dict(settings)
    given.pop("compare", None)  # what `errata compare` varies
    on_gpu = given.pop("on_gpu", None) or {}
    given |= on_gpu if (torch.cuda.is_available() if gpu is None else gpu) else {}
    environment = {str(key): str(value) for key, value in (given.pop("env", None) or {}).items()}
    flat, nested = _split_overrides(overrides)
    pairs = {flat[i].removeprefix("--"): flat[i + 1] for i in range(len(flat) - 1) if flat[i].startswith("--")}
    if pairs.get("method", given.get("method", "distil")) != given.get("method", "distil"):
        given.pop("method_args", None)  # they are meant for the recipe's own method
        if "run_name" in given and "run_name" not in pairs:  # so is its name
            given["run_name"] = f"{given['run_name']}-{pairs['method'].split(':')[-1]}"
    for (outer, inner), value in nested.items():
        given[outer] = {**(given.get(outer) or {}), inner: value}
    known = {f.name for kind in _KINDS for f in fields(kind) if f.init}
    _reject_unknown([*given, *on_gpu], known, f"{where}: ")
    _reject_unknown([word.split("=")[0].removeprefix("--") for word in flat if word.startswith("--")], known, "--")

    ours = {*ErrataConfig.__annotations__} - {f.name for f in fields(GRPOConfig)}
    if _TRL_MODEL in given and not ours & {*given, *pairs}:
        given["method"] = "grpo"  # a recipe of TRL's, which knows no methods
    if "model" not in given and "model" not in pairs:
        named = pairs.get("model_name_or_path", given.get("model_name_or_path"))
        if named is None:
            raise ValueError("model: missing; name a hub id, a directory or `house`")
        given["model"] = named
    parser = _Parser(_KINDS)
    parser.set_defaults_with_config(**given)
    parsed = parser.parse_args_into_dataclasses(args=list(flat), look_for_args_file=False)
    config, model, script, mixture = parsed
    _check_model(model)
    return Recipe(config, model, script, mixture, {**given, **pairs}, environment)


def _split_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[tuple[str, str], Any]]:
    flat: list[str] = []
    nested: dict[tuple[str, str], Any] = {}
    words = [
        part for word in overrides for part in (word.split("=", 1) if word.startswith("--") and "=" in word else [word])
    ]
    i = 0
    while i < len(words):
        outer, _, inner = words[i].removeprefix("--").partition(".")
        if words[i].startswith("--") and outer in NESTED:
            if i + 1 == len(words):
                raise ValueError(f"{words[i]}: needs a value")
            value = _of_yaml(words[i], words[i + 1])
            if not inner and not isinstance(value, dict):
                raise ValueError(f"{words[i]}: must be a mapping such as '{{credit: mean}}', got {words[i + 1]!r}")
            nested |= {(outer, inner): value} if inner else {(outer, key): v for key, v in value.items()}
            i += 2
        else:
            flat.append(words[i])
            i += 1
    return flat, nested


def _of_yaml(name: str, text: str) -> Any:
    try:
        return as_number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not YAML: {' '.join(str(error).split())}") from error


def _reject_unknown(keys: Iterable[str], known: set[str], where: str) -> None:
    for key in keys:
        # Only the command line has --no_bf16, and --max-steps beside --max_steps.
        if key not in known and not (where == "--" and key.replace("-", "_").removeprefix("no_") in known):
            raise ValueError(f"{where}{key}: unknown argument{nearest(key, sorted(known))}")


def _check_model(model: ModelConfig) -> None:
    hints = hints_of(ModelConfig)
    for f in fields(model):
        hint = RULES.get(f.name, hints.get(f.name))
        if f.name in RULES or is_plain(hint):
            check(f.name, getattr(model, f.name), hint)
    plain = ModelConfig()
    for f in fields(model):
        if f.name.startswith("lora_") and not model.use_peft and getattr(model, f.name) != getattr(plain, f.name):
            raise ValueError(f"{f.name}: is for an adapter, and use_peft is not true; set it, or leave {f.name} out")
