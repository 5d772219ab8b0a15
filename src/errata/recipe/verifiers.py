"""The verifiers, tools and environments that a recipe names."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException, get_json_schema

from errata import tasks
from errata.feedback import load_function, load_verifier
from errata.feedback.sandbox.verifier_process import ProcessVerifier, is_own
from errata.recipe.config import ErrataConfig, mapping
from errata.recipe.read import Recipe
from errata.validate import nearest

logger = logging.getLogger(__name__)


def verifiers_of(recipe: Recipe) -> list[Any]:
    """The task's verifier, or those the recipe names; a TRL recipe's ``reward_funcs`` work unchanged.

    Raises ``ValueError`` where there is none, or the task's cannot run here.
    """
    config = recipe.config
    apart = (
        config.verifier_isolation != "none" and config.environment is None
    )  # an environment is an object of this process
    if config.verifier_isolation == "process" and not apart:
        logger.warning("verifier_isolation: verifiers that are given environments run in the training process")
    if config.verifier:
        return [_named(spec, apart=apart) for spec in config.verifier]
    if recipe.script.reward_funcs:
        return [_reward_function(name, apart=apart) for name in recipe.script.reward_funcs]
    if config.task is not None:
        try:
            return [tasks.verifier(config.task, **mapping(config.task_args))]
        except (RuntimeError, ImportError) as error:  # no isolation for programs, a missing package
            raise ValueError(f"task: the verifier of {config.task} cannot run here: {error}") from error
    if config.environment is not None and hasattr(load_function(config.environment, "environment"), "get_reward"):
        return []  # it judges by itself
    raise ValueError("verifier: missing; rows of dataset_name need verifier: [file.py:function] or TRL's reward_funcs")


_GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""Arguments that every verifier gets, whatever the data's columns."""


def check_columns(judges: Sequence[Any], columns: Sequence[str]) -> None:
    """Raises ``ValueError`` where a verifier has an argument without default that is no column of the data."""
    for judge in judges:
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


def _reward_function(name: str, *, apart: bool) -> Any:
    import trl.rewards

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
