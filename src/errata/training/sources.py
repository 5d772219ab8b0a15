"""Where a run's policy, rows and verifiers come from, each checked before any compute is spent."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException, get_json_schema

from errata import tasks
from errata.feedback import load_function, load_verifier
from errata.training.config import ErrataConfig
from errata.training.recipe import Recipe

logger = logging.getLogger(__name__)


def model_path(name: str) -> str:
    """The directory or hub id that ``name`` stands for; ``house`` is the policy this package carries.

    A run directory that has not finished stands for its newest whole checkpoint. Raises ``ValueError`` for a
    directory that does not exist or holds no model.
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
    """A causal language model, its adapter merged in by PEFT where ``path`` holds one. One clear line where it cannot be had."""
    try:
        if (Path(path) / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            return AutoPeftModelForCausalLM.from_pretrained(path, is_trainable=True, **kwargs)
        AutoConfig.from_pretrained(path, trust_remote_code=bool(kwargs.get("trust_remote_code")))
        return AutoModelForCausalLM.from_pretrained(path, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: cannot load {path!r}: {str(error).splitlines()[0]}") from error


def rows_of(recipe: Recipe, *, split: str, task: str | None) -> Dataset:
    """The rows of a task, or of TRL's ``dataset_name``, checked.

    Raises ``ValueError`` naming the row, the column and the mend; with the recipe's ``strict: false`` rows that cannot be
    used are left out, counted and logged.
    """
    strict = recipe.config.strict
    if task is not None:
        rows = tasks.load(task, path=recipe.config.task_path, split=split, strict=strict)
        where = f"{task} ({split})"
    elif recipe.script.dataset_name is not None:
        where = f"{recipe.script.dataset_name} ({split})"
        try:
            rows = load_dataset(recipe.script.dataset_name, name=recipe.script.dataset_config, split=split)
        except Exception as error:
            raise ValueError(f"dataset_name: cannot load {where}: {str(error).splitlines()[0]}") from error
    else:
        raise ValueError("task: missing; name one of `errata tasks`, or a dataset_name with reward_funcs or a verifier")
    return checked(rows, where, strict=strict)


def checked(rows: Dataset, where: str, *, strict: bool = True) -> Dataset:
    """Rows that can be trained on, with a stable ``problem_id``; derived from the prompt where the data has none.

    Raises ``ValueError`` naming the first row that cannot; ``strict=False`` leaves such rows out and logs how many.
    """
    if len(rows) == 0:
        raise ValueError(f"{where}: the data set is empty; check task_path, dataset_name and the split")
    if "prompt" not in rows.column_names:
        raise ValueError(
            f"{where}: no column 'prompt' (has {', '.join(rows.column_names)}); rename the one that holds the problem"
        )
    named = "problem_id" in rows.column_names
    ids = list(rows["problem_id"]) if named else [_stable_id(prompt) for prompt in rows["prompt"]]
    bad = _bad_rows(rows["prompt"], ids)
    if bad and strict:
        number, problem = min(bad.items())
        raise ValueError(f"{where}: row {number}, {problem} (strict: false leaves such rows out)")
    if len(bad) == len(rows):
        raise ValueError(f"{where}: no usable rows; the first problem: row 0, {bad[0]}")
    if not named:
        rows = rows.add_column("problem_id", ids)
    if bad:
        number, problem = min(bad.items())
        logger.warning("%s: left out %d of %d rows; the first: row %d, %s", where, len(bad), len(rows), number, problem)
        rows = rows.select([number for number in range(len(rows)) if number not in bad])
    return rows


def _bad_rows(prompts: Iterable[Any], ids: Sequence[Any]) -> dict[int, str]:
    """What is wrong with which rows, and the mend."""
    bad: dict[int, str] = {}
    asked: dict[str, tuple[int, Any]] = {}
    for number, (prompt, problem_id) in enumerate(zip(prompts, ids, strict=True)):
        messages = (
            isinstance(prompt, list)
            and bool(prompt)
            and all(isinstance(m, dict) and "role" in m and "content" in m for m in prompt)
        )
        if not (messages or (isinstance(prompt, str) and prompt)):
            bad[number] = "column 'prompt': must be a non-empty text or a list of messages with role and content"
        elif problem_id is None:
            bad[number] = "column 'problem_id': is empty; give every problem a name that stays the same between runs"
        elif (first := asked.setdefault(str(problem_id), (number, prompt)))[1] != prompt:
            bad[number] = (
                f"column 'problem_id': {problem_id!r} is row {first[0]}'s, whose prompt is another; give every problem its own"
            )
    return bad


def _stable_id(prompt: Any) -> str:
    return hashlib.sha256(json.dumps(prompt, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def check_template_tasks(recipe: Recipe, rows: Dataset) -> None:
    """Raises ``ValueError`` where ``context_template`` names a task that neither errata nor the data has."""
    wordings = recipe.config.context_template
    known = {*tasks.names(), *(map(str, set(rows["task"])) if "task" in rows.column_names else ())}
    for name in wordings if isinstance(wordings, dict) else ():
        if not any(task == name or task.startswith(f"{name}/") for task in known):
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise ValueError(f"context_template: no task {name!r}; {hint}")


def verifiers_of(recipe: Recipe) -> list[Any]:
    """The task's verifier, or those the recipe names; a TRL recipe's ``reward_funcs`` work unchanged.

    Raises ``ValueError`` where there is none, or the task's cannot run here.
    """
    config = recipe.config
    if config.verifier:
        return [load_verifier(spec) for spec in config.verifier]
    if recipe.script.reward_funcs:
        return [_reward_function(name) for name in recipe.script.reward_funcs]
    if config.task is not None:
        try:
            return [tasks.verifier(config.task, **mapping(config.task_args))]
        except (RuntimeError, ImportError) as error:  # no isolation for programs, a missing package
            raise ValueError(f"task: the verifier of {config.task} cannot run here: {error}") from error
    if config.environment is not None and hasattr(load_function(config.environment, "environment"), "get_reward"):
        return []  # it judges by itself
    raise ValueError("verifier: missing; rows of dataset_name need verifier: [file.py:function] or TRL's reward_funcs")


def tools_of(config: ErrataConfig) -> dict[str, Any]:
    """The trainer's ``tools`` and ``environment_factory``, for a recipe's ``tools`` and ``environment``.

    Raises ``ValueError`` for one that does not load, or that cannot be described to a model, with the mend.
    """
    tools = [load_function(spec, "tools") for spec in config.tools or ()]
    for spec, tool in zip(config.tools or (), tools, strict=True):
        _check_tool(f"tools: {spec!r}", tool)
    given: dict[str, Any] = {"tools": tools} if tools else {}
    if config.environment is not None:
        environment = load_function(config.environment, "environment")
        if not isinstance(environment, type) or not callable(getattr(environment, "reset", None)):
            raise ValueError(f"environment: {config.environment!r} must be a class with a method reset(self, **row)")
        for name, method in inspect.getmembers(environment, inspect.isfunction):
            if name not in ("reset", "get_reward") and not name.startswith("_"):
                _check_tool(f"environment: {config.environment!r}, {name}", method)
        given["environment_factory"] = environment
    return given


def _check_tool(where: str, tool: Any) -> None:
    try:
        get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException, ValueError) as error:
        raise ValueError(
            f"{where}: cannot be described to the model: {' '.join(str(error).split())}; give every argument a type and a "
            "line under Args: in the docstring"
        ) from error


def _reward_function(name: str) -> Any:
    import trl.rewards

    if hasattr(trl.rewards, name):
        return getattr(trl.rewards, name)
    module, dot, function = name.rpartition(".")
    return load_verifier(f"{module}:{function}" if dot and ":" not in name else name)


def mapping(value: Any) -> dict[str, Any]:
    """A recipe's optional mapping as one."""
    return dict(value or {})
