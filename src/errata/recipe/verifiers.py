"""The verifiers, tools and environments that a recipe names."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException, get_json_schema

from errata import tasks
from errata.feedback import load_function, load_verifier
from errata.feedback.routed import RoutedVerifier
from errata.feedback.sandbox.verifier_process import ProcessVerifier, is_own
from errata.recipe.config import ErrataConfig, mapping
from errata.recipe.mixture import parts_of
from errata.recipe.read import Recipe
from errata.validate import nearest

logger = logging.getLogger(__name__)


def verifiers_of(recipe: Recipe) -> list[Any]:
    """The task's verifier, or those the recipe names: ``verifier``, then TRL's ``reward_funcs`` and reward model.

    Raises ``ValueError`` where there is none, or the task's cannot run here.
    """
    config, script = recipe.config, recipe.script
    environments = environments_of(config)
    # An environment is an object of this process.
    apart = config.verifier_isolation != "none" and not environments
    if config.verifier_isolation == "process" and not apart:
        logger.warning("verifier_isolation: verifiers that are given environments run in the training process")
    parts = parts_of(config)
    by_name = {
        part.name: _of_task(part.name, part.args) for part in parts if part.name not in mapping(config.verifiers)
    }
    by_name |= {name: _named(_spec(name, spec), apart=apart) for name, spec in mapping(config.verifiers).items()}
    if by_name:
        if beside := [k for k in ("reward_funcs", "reward_model_name_or_path") if getattr(script, k)]:
            raise ValueError(f"{beside[0]}: verifiers are named by task or environment; leave out one of the two")
        if config.verifier:
            raise ValueError("verifier: verifiers names them by task or environment; leave out one of the two")
        return [RoutedVerifier(by_name, timeout_s=config.verifier_timeout_s)]
    named = [_named(spec, apart=apart) for spec in config.verifier or ()]
    named += [_reward_function(name, apart=apart) for name in script.reward_funcs or ()]
    if script.reward_model_name_or_path:
        named.append(script.reward_model_name_or_path)  # TRL loads it
    if named:
        return named
    if config.task is not None:
        return [_of_task(config.task, mapping(config.task_args))]
    if environments and all(hasattr(c, "get_reward") for c in environments.values()):
        return []  # they judge by themselves
    raise ValueError("verifier: missing; rows of dataset_name need verifier: [file.py:function] or TRL's reward_funcs")


def _of_task(name: str, args: Mapping[str, Any]) -> Any:
    try:
        return tasks.verifier(name, **args)
    except (RuntimeError, ImportError) as error:  # no isolation for programs, a missing package
        raise ValueError(f"task: the verifier of {name} cannot run here: {error}") from error


def _spec(name: str, spec: Any) -> str:
    if not isinstance(spec, str):
        raise ValueError(f"verifiers.{name}: must be file.py:function or package.module:function, got {spec!r:.80}")
    return spec


_GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""Arguments that every verifier gets, whatever the data's columns."""


def check_columns(judges: Sequence[Any], columns: Sequence[str]) -> None:
    """Raises ``ValueError`` where a verifier has an argument without default that is no column of the data."""
    each = [v for judge in judges for v in (judge.verifiers.values() if isinstance(judge, RoutedVerifier) else [judge])]
    for judge in each:
        if not callable(judge) or isinstance(judge, nn.Module):
            continue
        try:
            parameters = inspect.signature(judge).parameters.values()
        except (TypeError, ValueError):  # written in C
            continue
        for parameter in parameters:
            has_name = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if has_name and parameter.default is parameter.empty and parameter.name not in (*_GIVEN, *columns):
                name = getattr(judge, "__name__", type(judge).__name__)
                raise ValueError(
                    f"verifier: {name} needs the column {parameter.name!r}, and the rows have {', '.join(columns)}"
                    f"{nearest(parameter.name, columns)}; add the column or give the argument a default"
                )


def tools_of(config: ErrataConfig) -> dict[str, Any]:
    """The trainer's ``tools`` and ``environment_factory``, for a recipe's ``tools`` and ``environment``.

    Raises ``ValueError`` for one that does not load, or that cannot be described to a model, with the mend.
    """
    tools = [load_function(spec, "tools") for spec in config.tools or ()]
    for spec, tool in zip(config.tools or (), tools, strict=True):
        _check_tool(f"tools: {spec!r}", tool)
    given: dict[str, Any] = {"tools": tools} if tools else {}
    environments = environments_of(config)
    if environments:
        given["environment_factory"] = environments.get("", environments)
    return given


class OneTurn:
    """The environment of a task of one turn in a mixture where others have several: no tools."""

    def reset(self, **row: Any) -> None:
        """Nothing is shown."""


def environments_of(config: ErrataConfig) -> dict[str, type]:
    """The classes that the recipe's ``environment`` names, else its tasks have, by name; the name is empty where there is one
    for all rows."""
    if config.environment is not None:
        return _environments(config.environment)
    if config.task is not None:
        found = tasks.environment(config.task)
        return {} if found is None else {"": found}
    names = [part.name for part in parts_of(config)]
    by_task = {name: tasks.environment(name) for name in names}
    return {name: found or OneTurn for name, found in by_task.items()} if any(by_task.values()) else {}


def _environments(given: Any) -> dict[str, type]:
    """The classes that ``environment`` names, checked, by name; the name is empty where there is one for all rows."""
    specs = given if isinstance(given, dict) else {"": given}
    if not specs or not all(isinstance(spec, str) for spec in specs.values()):
        raise ValueError(f"environment: must be file.py:Class, or a mapping of names to that, got {given!r:.80}")
    found: dict[str, type] = {}
    for key, spec in specs.items():
        environment = load_function(spec, "environment")
        if not isinstance(environment, type) or not callable(getattr(environment, "reset", None)):
            raise ValueError(f"environment: {spec!r} must be a class with a method reset(self, **row)")
        for name, method in inspect.getmembers(environment, inspect.isfunction):
            if name not in ("reset", "get_reward") and not name.startswith("_"):
                _check_tool(f"environment: {spec!r}, {name}", method)
        found[key] = environment
    return found


def _check_tool(where: str, tool: Any) -> None:
    try:
        get_json_schema(tool)
    except (DocstringParsingException, TypeHintParsingException, ValueError) as error:
        raise ValueError(
            f"{where}: cannot be described to the model: {' '.join(str(error).split())}; give every argument a type and a "
            "line under Args: in the docstring"
        ) from error


def _reward_function(name: str, *, apart: bool) -> Any:
    import trl.rewards

    if name == "get_soft_overlong_punishment":
        return trl.rewards.get_soft_overlong_punishment(
            max_completion_len=1280, soft_punish_cache=256
        )  # as TRL's script does
    if name.startswith("get_") and hasattr(trl.rewards, name):
        raise ValueError(
            f"reward_funcs: {name} makes a reward function from its settings, which a name has not; write reward = "
            f"trl.rewards.{name}(...) in a file rewards.py, and verifier: [rewards.py:reward]"
        )
    if hasattr(trl.rewards, name):
        return getattr(trl.rewards, name)
    module, dot, function = name.rpartition(".")
    return _named(f"{module}:{function}" if dot and ":" not in name else name, apart=apart)


def _named(spec: str, *, apart: bool) -> Any:
    """The verifier that a recipe names, in a process of its own if ``apart``."""
    if not apart or is_own(spec):
        return load_verifier(spec)
    verifier = ProcessVerifier(spec)
    if not verifier.limits_own_time:
        return verifier
    verifier.close()  # it may ask a person at the terminal, which another process does not have
    return load_verifier(spec)
