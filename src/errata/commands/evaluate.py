"""``errata eval``: avg@k and pass@k with their intervals, of a run, a checkpoint, a model directory or a hub id.

The problems are asked and judged by the trainer, exactly as in the evaluations within a run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from errata.commands.allocator import keep_memory
from errata.commands.train import quiet
from errata.evaluation.intervals import paired
from errata.evaluation.sampling import Evaluation
from errata.recipe.build import build_trainer, method_of
from errata.recipe.models import model_path
from errata.recipe.read import Recipe, read, recipe_of
from errata.recipe.settings import RULES
from errata.recipe.text import load_mapping
from errata.training.evaluation import judged_rows, sampling_of
from errata.validate import check, check_file

_OF_A_TASK = (
    *("task_path", "task_args", "verifier", "reward_funcs", "reward_weights"),
    *("columns", "prompt_format", "eval_dataset_name"),
)
_OF_A_RUN = (
    *(*_OF_A_TASK, "dataset_name", "dataset_config", "verifier_timeout_s", "tools", "environment", "strict"),
    *("max_completion_length", "use_cpu"),
    *("max_tool_calling_iterations", "chat_template_kwargs", "trust_remote_code", "attn_implementation"),
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "eval_temperature", "eval_top_p", "seed"),
    *("eval_batch_size", "cache_implementation", "generation_kwargs"),
)
"""What of a run's settings says how its problems are asked and judged."""
_CHECKED = {
    **{name: f"eval_{name}" for name in ("k", "problems", "batch_size", "temperature", "top_p")},
    **{name: name for name in ("max_completion_length", "seed")},
}
"""Options of the command, and the settings of a recipe whose ranges they have."""


def evaluate(args: argparse.Namespace) -> int:
    """Print the numbers as JSON, and write the judged completions where ``--out`` says.

    Raises ``ValueError`` in one line for anything the user can mend.
    """
    check_file("--out", args.out)
    where, found = measured(args)
    if args.out is not None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows)
        args.out.write_text("".join(lines), encoding="utf-8")
    numbers = {"model": args.model, **where, "split": args.split, **found.metrics}
    if args.against is not None:
        other = measured(argparse.Namespace(**{**vars(args), "model": args.against}))[1]
        difference = paired(found.rows, other.rows, threshold=_settings_threshold(args))._asdict()
        numbers |= {"against": {"model": args.against, **other.metrics}, "paired": difference}
    Console().print_json(json.dumps(numbers))
    return 0


def _settings_threshold(args: argparse.Namespace) -> float:
    """The score from which a completion of the evaluated run counts as solved."""
    run = _settings_of_run(Path(args.model))
    if args.task is not None and args.task.endswith((".yaml", ".yml")):
        run = _with_recipe(run, args.task)
    return float((run.get("method_settings") or {}).get("success_threshold", 1.0))


def measured(args: argparse.Namespace) -> tuple[dict[str, str], Evaluation]:
    """What was evaluated on (``task`` or ``dataset``), and the numbers with the judged completions.

    Raises ``ValueError`` in one line for anything the user can mend.
    """
    asked = args.task
    for name, setting in _CHECKED.items():
        value = getattr(args, name)
        if value is not None:
            check(f"--{name}", value, RULES[setting])
    quiet()
    run = _settings_of_run(Path(args.model))
    if args.task is not None and args.task.endswith((".yaml", ".yml")):
        args = argparse.Namespace(**{**vars(args), "task": None})
        run = _with_recipe(run, asked)
    task = args.task or run.get("eval_task") or run.get("task")
    if task is None and run.get("dataset_name") is None:
        raise ValueError("task: missing; name one of `errata tasks` with --task")
    if not torch.cuda.is_available():
        keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(_recipe(args, run, folder), evaluate_only=True)
        metrics = trainer.evaluator(trainer, trainer.eval_dataset)
    where = {"task": task} if task is not None else {"dataset": run.get("eval_dataset_name") or run["dataset_name"]}
    return where, Evaluation(metrics, judged_rows(trainer.evaluator.last_rollouts, args.k, sampling_of(trainer.args)))


def _recipe(args: argparse.Namespace, run: dict[str, Any], folder: str) -> Recipe:
    """What a trainer needs to evaluate the model as its run did, with the command's own settings over the run's."""
    inherited = {k: run[k] for k in _OF_A_RUN if k in run}
    task = args.task or run.get("task")
    if args.task is not None and args.task != run.get("task"):
        inherited = {k: v for k, v in inherited.items() if k not in _OF_A_TASK}
    settings = {
        "output_dir": folder,
        "model": model_path(args.model),
        "method": "grpo",
        "method_args": {"success_threshold": (run.get("method_settings") or {}).get("success_threshold", 1.0)},
        "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
        "task": task,
        "task_path": args.task_path or inherited.get("task_path"),
        "eval_task": run.get("eval_task") if args.task is None else None,
        "eval_split": args.split,
        "dataset_test_split": args.split,
        "strict": inherited.get("strict") if args.strict is None else args.strict,
        "eval_on_start": True,
        "eval_k": args.k,
        "eval_batch_size": args.batch_size,
        "eval_problems": args.problems,
        "eval_temperature": args.temperature,
        "eval_top_p": args.top_p,
        "max_completion_length": args.max_completion_length or inherited.get("max_completion_length") or 512,
        "seed": inherited.get("seed", 0) if args.seed is None else args.seed,
        # A trainer asks for these, and an evaluation does not use them.
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
    }
    return recipe_of(inherited | {name: value for name, value in settings.items() if value is not None})


def _with_recipe(run: dict[str, Any], path: str) -> dict[str, Any]:
    """A run's settings with the rows, the verifier and the threshold of a recipe."""
    recipe = read(path)
    recipe.set_environment()
    about_rows = (*_OF_A_TASK, "task", "eval_task", "dataset_name", "dataset_config", "tools", "environment", "strict")
    kept = {name: value for name, value in run.items() if name not in about_rows}
    found = {name: recipe.given[name] for name in (*_OF_A_RUN, "task", "eval_task") if name in recipe.given}
    return {**kept, **found, "method_settings": method_of(recipe).settings()}


def _settings_of_run(path: Path) -> dict[str, Any]:
    """The settings of the run that ``path`` is or is a checkpoint of; none where it is no run's."""
    for folder in (path, path.parent):
        config = folder / "config.yaml"
        if config.is_file():
            settings = load_mapping(config)
            for name, kind in {"task": str | None, "eval_task": str | None, "method_settings": dict | None}.items():
                check(f"{config}: {name}", settings.get(name), kind)
            return settings
    return {}
