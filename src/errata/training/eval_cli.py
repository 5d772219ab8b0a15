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
from errata.training.recipe import read
from errata.training.run import build_trainer, quiet

_OF_A_RUN = (
    *("task", "task_path", "task_args", "verifier", "verifier_timeout_s", "tools", "environment", "strict"),
    *("dataset_name", "dataset_config", "reward_funcs", "reward_weights", "max_completion_length"),
    *("max_tool_calling_iterations", "chat_template_kwargs", "trust_remote_code", "attn_implementation", "use_cpu"),
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
    of_run = settings_of_run(Path(args.model))
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
    quiet()
    given = {k: of_run[k] for k in _OF_A_RUN if k in of_run}
    if args.task is not None and args.task != of_run.get("task"):
        for name in ("task_path", "task_args", "verifier", "reward_funcs", "reward_weights"):
            given.pop(name, None)
    given |= {"model": sources.model_path(args.model), "method": "grpo", "eval_on_start": True}
    given |= {"task": args.task} if args.task is not None else {"eval_task": of_run.get("eval_task")}
    given |= {"eval_k": args.k, "eval_batch_size": args.batch_size, "eval_problems": args.problems, "seed": args.seed}
    given |= {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "task_path": args.task_path or given.get("task_path"),
    }
    given |= {"eval_split": args.split, "dataset_test_split": args.split}
    # What a trainer wants to know and an evaluation does not use.
    given |= {"num_generations": 2, "per_device_train_batch_size": 2, "save_strategy": "no"}
    given |= {"dtype": "bfloat16" if torch.cuda.is_available() else "float32"}
    for name in ("strict", "max_completion_length"):
        if getattr(args, name) is not None:
            given[name] = getattr(args, name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        given["output_dir"] = folder
        path.write_text(yaml.safe_dump({k: v for k, v in given.items() if v is not None}), encoding="utf-8")
        trainer = build_trainer(read(path))
        metrics = trainer.evaluator.evaluate(trainer.eval_dataset)
    rows = [
        {
            "problem_id": r.problem_id,
            "sample": r.index % args.k,
            "prompt": r.prompt,
            "completion": r.completion,
            "turns": list(r.turns),
            "length": r.length,
            "score": r.reward,
            "kind": r.verdict.kind,
            "feedback": r.verdict.feedback,
            "info": dict(r.verdict.info),
        }
        for r in trainer.evaluator.last_rollouts
    ]
    return Evaluation(metrics, rows)


def settings_of_run(path: Path) -> dict[str, Any]:
    """The settings of the run that ``path`` is or is a checkpoint of; none where it is no run's."""
    for folder in (path, path.parent):
        config = folder / "config.yaml"
        if config.is_file():
            return dict(yaml.safe_load(config.read_text(encoding="utf-8")) or {})
    return {}
