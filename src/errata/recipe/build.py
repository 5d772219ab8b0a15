"""From a recipe to its trainer."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import torch
from transformers import PrinterCallback
from trl import get_peft_config, get_quantization_config

from errata import methods
from errata.methods import Method, TeacherMethod
from errata.recipe import models, rows, verifiers
from errata.recipe.config import ErrataConfig, mapping
from errata.recipe.experts import expert_of
from errata.recipe.mixture import parts_of
from errata.recipe.read import Recipe
from errata.recipe.settings import check_packages
from errata.training.rollout_log import WriteRow
from errata.training.trainer import ErrataTrainer


def method_of(recipe: Recipe) -> Method:
    """The recipe's method with its settings; one that has a setting ``tasks`` is told the recipe's, where these are several.

    Raises ``ValueError`` naming an unknown one, or one whose own code fails."""
    config = recipe.config
    try:
        return methods.get(config.method, **_several_tasks(config), **mapping(config.method_args))
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"method: {recipe.config.method} cannot be made: {models.one_line(error)}") from error


def _several_tasks(config: ErrataConfig) -> dict[str, tuple[str, ...]]:
    names = [part.name for part in parts_of(config)]
    if isinstance(config.environment, dict):
        names += config.environment
    preset = methods.PRESETS.get(config.method)
    takes = preset is not None and any(f.name == "tasks" for f in fields(preset.method))
    given = "tasks" in mapping(config.method_args)
    return {"tasks": tuple(dict.fromkeys(names))} if takes and not given and len(names) > 1 else {}


CONTEXT_SETTINGS = ("sources", "with_feedback", "allow_leaks", "demonstrations", "keep_thinking")
"""The settings of a method that may differ between the tasks or environments of a run: those of its contexts."""


def context_methods_of(recipe: Recipe) -> dict[str, Method]:
    """By task or environment the method whose settings choose the contexts of its rows: the recipe's ``context_args``.

    Raises ``ValueError`` naming a setting that cannot differ, or a method without contexts.
    """
    found: dict[str, Method] = {}
    for name, args in mapping(recipe.config.context_args).items():
        if not isinstance(args, dict):
            raise ValueError(
                f"context_args.{name}: must be a mapping such as {{sources: [feedback]}}, got {args!r:.80}"
            )
        for key in args:
            if key not in CONTEXT_SETTINGS:
                raise ValueError(
                    f"context_args.{name}: {key!r} cannot differ between tasks; only {', '.join(CONTEXT_SETTINGS)} can"
                )
        method = methods.get(recipe.config.method, **{**mapping(recipe.config.method_args), **args})
        if not isinstance(method, TeacherMethod):
            raise ValueError(f"context_args: {recipe.config.method} has no teacher and so no contexts; leave it out")
        found[name] = method
    return found


def build_trainer(
    recipe: Recipe, write: WriteRow = lambda stem, row: None, *, evaluate_only: bool = False
) -> ErrataTrainer:
    """The trainer a recipe describes. All its inputs are checked first, the cheap ones before the expensive ones.

    Args:
        write: keeps a row in the run directory's file of a stem.
        evaluate_only: the training rows are not needed; the evaluation's stand in for them.
    Raises:
        ValueError: in one line, for anything the user can mend.
    """
    config, model_args = recipe.config, recipe.model
    check_packages({**vars(model_args), **vars(config)})
    if config.torch_compile and not torch.cuda.is_available():
        raise ValueError(
            "torch_compile: on a CPU every new length of prompts and answers is compiled for minutes; leave it out"
        )
    if config.push_to_hub and not evaluate_only:
        _check_hub()
    method = method_of(recipe)
    judges = verifiers.verifiers_of(recipe)
    tools = verifiers.tools_of(config)
    named = config.task is not None or config.tasks is not None
    eval_rows = None
    if config.eval_strategy != "no" or config.eval_on_start:
        split = config.eval_split if named else recipe.script.dataset_test_split
        task = config.eval_task or config.task
        eval_rows = rows.rows_of(recipe, split=split, task=task, name=config.eval_dataset_name)
        if config.eval_problems is not None and config.tasks is None:  # of a mixture: the first of each task
            eval_rows = eval_rows.select(range(min(config.eval_problems, len(eval_rows))))
    if evaluate_only and eval_rows is not None:
        train_rows = eval_rows
    else:
        split = "train" if named else recipe.script.dataset_train_split
        train_rows = rows.rows_of(recipe, split=split, task=config.task)
        same = not named and split == recipe.script.dataset_test_split  # then the user evaluates on what is trained on
        if config.task is None and eval_rows is not None and not same:  # tasks do this by themselves
            train_rows = rows.without_leaks(train_rows, eval_rows, str(recipe.script.dataset_name))
    rows.check_template_tasks(recipe, train_rows)
    if method.learns_from == "reference" and not config.strict and not evaluate_only:
        train_rows = rows.with_reference(train_rows)
    if not evaluate_only:
        rows.check_enough(config, train_rows)
    for judged in (train_rows, *([] if eval_rows is None else [eval_rows])):
        verifiers.check_columns(judges, judged.column_names)
        if isinstance(config.environment, dict):
            rows.check_environments(judged, config.environment)
    if (
        isinstance(method, TeacherMethod)
        and method.sources == ("reference",)
        and not any(train_rows["reference"] if "reference" in train_rows.column_names else [])
    ):
        raise ValueError(
            f"method: {config.method} shows its teacher the reference, and no row has a 'reference'; "
            "use another method or add the column"
        )
    where = models.model_path(str(config.model))
    tokenizer = models.load_tokenizer(where, config.trust_remote_code)
    kwargs: dict[str, Any] = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype or "float32",
        "trust_remote_code": config.trust_remote_code,
        "quantization_config": _quantization(model_args),
        **dict(config.model_init_kwargs or {}),
    }
    models.check_chat_template(tokenizer, train_rows[0]["prompt"])
    expert, access = expert_of(config, method, tokenizer)
    model = models.load_model(where, **{k: v for k, v in kwargs.items() if v is not None})
    models.check_vocabulary(model, tokenizer)
    longest = models.longest_prompt(model, config.max_completion_length)
    train_rows = rows.fitting(train_rows, "train data", longest, tokenizer, strict=config.strict)
    if eval_rows is not None:
        eval_rows = rows.fitting(eval_rows, "test data", longest, tokenizer, strict=config.strict)
    # The trainer gets a copy of its own: the recipe stays as it was read.
    args = copy.copy(config)
    args.model_init_kwargs = None  # the model is loaded already
    trainer = ErrataTrainer(
        model,
        judges,
        args,
        method=method,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        run=write,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        expert=expert,
        access=access,
        context_methods=context_methods_of(recipe),
        **tools,
    )
    trainer.remove_callback(PrinterCallback)  # the progress bar says it, and metrics.jsonl keeps it
    return trainer


def _check_hub() -> None:
    """Raises ``ValueError`` unless the hub can be reached and written to."""
    from huggingface_hub import HfApi

    try:
        HfApi().whoami()
    except Exception as error:  # offline, no token, a wrong one: each has its own class
        raise ValueError(
            f"push_to_hub: the hub does not let us write: {models.one_line(error)}; log in with `hf auth login`, or leave it out"
        ) from error


def _quantization(model_args: Any) -> Any:
    try:
        return get_quantization_config(model_args)
    except Exception as error:  # bitsandbytes is missing, or has no such device
        raise ValueError(f"load_in_4bit, load_in_8bit: not possible here: {models.one_line(error)}") from error
