"""``errata.evaluate``: avg@k and pass@k of a run, a model's name or a model, on a task or on rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from errata import tasks
from errata.cli import parser
from errata.commands.evaluate import measured
from errata.evaluation.sampling import Evaluation
from errata.evaluation.sampling import evaluate as sampled
from errata.feedback import load_verifier
from errata.recipe import models


def evaluate(
    model: Any,
    task: str | Iterable[Mapping[str, Any]] | None = None,
    *,
    k: int = 8,
    verifier: Any = None,
    tokenizer: Any = None,
    split: str = "test",
    task_path: str | None = None,
    problems: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_completion_length: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    threshold: float = 1.0,
) -> Evaluation:
    """k judged completions of every problem: ``.metrics`` (avg@k, pass@k, ... with intervals) and ``.rows``.

    ``errata.evaluate("runs/demo", k=16).metrics["avg@16"]`` is what ``errata eval runs/demo --k 16`` prints.

    Args:
        model: a run, a checkpoint, a model's directory, a hub id or ``house``; or a causal language model.
        task: a name of ``errata tasks``, or rows with ``prompt``; a run's own task unless given.
        k: completions per problem.
        verifier: judges rows of your own: a function, or ``file.py:function``.
        tokenizer: of a model that is given as an object; its own unless given.
        split: the task's split.
        task_path: where the task's files lie.
        problems: only the first so many.
        temperature: 0 is greedy. As in ``errata eval`` unless given.
        top_p: nucleus sampling. Likewise.
        max_completion_length: tokens; a run's own, or 512, unless given.
        batch_size: completions generated at a time.
        seed: of the sampling.
        threshold: the score from which a completion counts as solved; a run's own for a run and a task.
    Raises:
        ValueError: an unknown task or model, rows without a verifier, or a setting out of range.
    """
    if isinstance(model, str) and (task is None or isinstance(task, str)) and verifier is None:
        options = {
            **{"task": task, "task_path": task_path, "split": split, "k": k, "problems": problems, "seed": seed},
            **{"temperature": temperature, "top_p": top_p, "batch_size": batch_size},
            "max_completion_length": max_completion_length,
        }
        words = [f"--{name}={value}" for name, value in options.items() if value is not None]
        return measured(parser().parse_args(["eval", model, *words]))[1]
    if isinstance(task, str):
        rows: list[dict[str, Any]] = list(tasks.load(task, path=task_path, split=split))
        verifier = tasks.verifier(task) if verifier is None else verifier
    elif task is None:
        raise ValueError("task: missing; name one of `errata tasks`, or give rows and a verifier")
    else:
        rows = [dict(row) for row in task]
    if verifier is None:
        raise ValueError("verifier: missing; rows of your own need one: a function, or file.py:function")
    if isinstance(verifier, str):
        verifier = load_verifier(verifier)
    if isinstance(model, str):
        where = models.model_path(model)
        model, tokenizer = models.load_model(where), tokenizer or models.load_tokenizer(where)
    elif tokenizer is None:
        tokenizer = models.load_tokenizer(str(model.config.name_or_path))
    return sampled(
        model,
        tokenizer,
        rows if problems is None else rows[:problems],
        verifier,
        k=k,
        threshold=threshold,
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        max_completion_length=max_completion_length or 512,
        batch_size=batch_size,
        seed=seed,
    )
