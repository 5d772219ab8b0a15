"""``errata eval``: avg@k and pass@k with their intervals, of a run, a checkpoint, a model directory or a hub id."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from errata import tasks
from errata.evaluation import Evaluation
from errata.evaluation import evaluate as evaluate_model
from errata.training import sources
from errata.training.allocator import keep_memory
from errata.training.evaluating import judged_rows
from errata.training.recipe import read
from errata.training.run import build_trainer, quiet

_OF_A_TASK = ("task_path", "task_args", "verifier", "reward_funcs", "reward_weights")
_OF_A_RUN = (
    *(*_OF_A_TASK, "dataset_name", "dataset_config", "verifier_timeout_s", "tools", "environment", "strict"),
    *("max_completion_length", "use_cpu"),
    *("max_tool_calling_iterations", "chat_template_kwargs", "trust_remote_code", "attn_implementation"),
)
"""What of a run's settings says how its problems are asked and judged."""


def evaluate(args: argparse.Namespace) -> int:
    """Print the numbers as JSON, and write the judged completions where ``--out`` says.

    Raises ``ValueError`` in one line for anything the user can mend.
    """
    if args.k < 1:
        raise ValueError(f"k: {args.k} completions per problem; give at least 1")
    if args.problems is not None and args.problems < 1:
        raise ValueError(f"problems: {args.problems} to evaluate on; give at least 1")
    quiet()
    of_run = _settings_of_run(Path(args.model))
    task = args.task or of_run.get("eval_task") or of_run.get("task")
    if task is None and of_run.get("dataset_name") is None:
        raise ValueError("task: missing; name one of `errata tasks` with --task")
    if not torch.cuda.is_available():
        keep_memory()
    # Whoever trained with tools or on rows of their own is asked as the run asked.
    as_trained = of_run.get("tools") or of_run.get("environment") or task is None
    found = _as_its_run(args, of_run) if as_trained else _of_task(args, of_run, str(task))
    if args.out is not None:
        args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows), encoding="utf-8")
    where = {"task": task} if task is not None else {"dataset": of_run["dataset_name"]}
    Console().print_json(json.dumps({"model": args.model, **where, "split": args.split, **found.metrics}))
    return 0


def _of_task(args: argparse.Namespace, of_run: dict[str, Any], task: str) -> Evaluation:
    """One turn for each problem of a task."""
    strict = of_run.get("strict", True) if args.strict is None else args.strict
    path = args.task_path or of_run.get("task_path")
    rows = sources.checked(tasks.load(task, path=path, split=args.split, strict=strict), f"{task} ({args.split})")
    if args.problems is not None:
        rows = rows.select(range(min(args.problems, len(rows))))
    where = sources.model_path(args.model)
    tokenizer = sources.load_tokenizer(where)
    model = sources.load_model(where, dtype="bfloat16" if torch.cuda.is_available() else "float32")
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return evaluate_model(
        model,
        tokenizer,
        rows,
        tasks.verifier(task, **dict(of_run.get("task_args") or {}) if task == of_run.get("task") else {}),
        k=args.k,
        temperature=args.temperature,
        top_p=args.top_p,
        max_completion_length=args.max_completion_length or of_run.get("max_completion_length") or 512,
        batch_size=args.batch_size,
        seed=args.seed,
    )


def _as_its_run(args: argparse.Namespace, of_run: dict[str, Any]) -> Evaluation:
    """By the run's trainer, with its tools, rows and verifiers, as the evaluations within the run."""
    inherited = {k: of_run[k] for k in _OF_A_RUN if k in of_run}
    if args.task is not None and args.task != of_run.get("task"):
        inherited = {k: v for k, v in inherited.items() if k not in _OF_A_TASK}
    given = inherited | {
        "model": sources.model_path(args.model),
        "method": "grpo",
        "dtype": "bfloat16" if torch.cuda.is_available() else "float32",
        "task": args.task or of_run.get("task"),
        "task_path": args.task_path or inherited.get("task_path"),
        "eval_task": of_run.get("eval_task") if args.task is None else None,
        "eval_split": args.split,
        "dataset_test_split": args.split,
        "strict": inherited.get("strict") if args.strict is None else args.strict,
        "eval_on_start": True,
        "eval_k": args.k,
        "eval_batch_size": args.batch_size,
        "eval_problems": args.problems,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "max_completion_length": args.max_completion_length or inherited.get("max_completion_length"),
        "seed": args.seed,
        # What a trainer wants to know and an evaluation does not use.
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        settings = {k: v for k, v in given.items() if v is not None} | {"output_dir": folder}
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        trainer = build_trainer(read(path))
        metrics = trainer.evaluator.evaluate(trainer.eval_dataset)
    return Evaluation(metrics, judged_rows(trainer.evaluator.last_rollouts, args.k))


def _settings_of_run(path: Path) -> dict[str, Any]:
    """The settings of the run that ``path`` is or is a checkpoint of; none where it is no run's."""
    for folder in (path, path.parent):
        config = folder / "config.yaml"
        if config.is_file():
            return dict(yaml.safe_load(config.read_text(encoding="utf-8")) or {})
    return {}
