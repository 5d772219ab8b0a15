"""``errata train``: from a recipe to a run directory."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.console import Console
from transformers.utils import logging

from errata.commands.allocator import keep_memory
from errata.commands.progress import Progress
from errata.recipe.build import build_trainer, method_of
from errata.recipe.config import ErrataConfig
from errata.recipe.read import Recipe, read
from errata.records import Rollout
from errata.reports.rundir import RunDirectory
from errata.reports.rundir import plain as _plain
from errata.reports.table import before_after, rollout_samples
from errata.training.compat import complete_checkpoints
from errata.training.trainer import ErrataTrainer


def train(path: str, overrides: Sequence[str]) -> int:
    """Run the recipe; resume the run of that name where one was interrupted."""
    quiet()
    recipe = read(path, overrides)
    recipe.set_environment()
    console = Console()
    run = RunDirectory(Path(str(recipe.config.output_dir)))
    if run.finished and not recipe.config.overwrite and run.config() == _plain(_resolved(recipe)):
        console.print(f"{run.path} holds this very run, finished; --overwrite true runs it anew", highlight=False)
        _show(console, run, run.read("rollouts")[-3:], method_of(recipe).success_threshold)
        return 0
    if recipe.config.use_cpu or not torch.cuda.is_available():
        keep_memory()
    trainer = build_trainer(recipe, run.write)
    trainer.add_callback(Progress(run, recipe.config.eval_k))
    checkpoint = _open_run(recipe, run)
    if checkpoint is not None:
        trainer.args.eval_on_start = False  # the evaluation of the untrained policy is there already
    _announce(console, trainer, recipe, checkpoint)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _finish(console, trainer, run, time.perf_counter() - started)
    trainer.accelerator.end_training()  # processes that leave with their group open can abort at the very end
    return 0


def _open_run(recipe: Recipe, run: RunDirectory) -> Path | None:
    """Begin or continue the run; the checkpoint to go on from where it was interrupted."""
    config = recipe.config
    if os.environ.get("RANK", "0") == "0":
        run.open(_resolved(recipe), overwrite=config.overwrite, resume=bool(config.resume_from_checkpoint))
        run.truncate_after(_step_of(_checkpoint_of(config, run.path)))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return _checkpoint_of(config, run.path)


def _resolved(recipe: Recipe) -> dict[str, Any]:
    """The settings a run is told apart by: all that differ from TRL's and our defaults, and the method's, whole."""
    config, method = recipe.config, method_of(recipe)
    settings = {k: v for k, v in recipe.given.items() if k not in _NOT_SETTINGS}
    settings |= {
        f.name: getattr(config, f.name)
        for f in fields(ErrataConfig)
        if f.name in settings and f.name not in _NOT_SETTINGS
    }
    for name in (
        "task",
        "model",
        "method",
        "num_generations",
        "max_completion_length",
        "temperature",
        "learning_rate",
        "seed",
        "generation_batch_size",
        "eval_k",
    ):
        settings[name] = getattr(config, name)
    return {**settings, "method_settings": method.settings()}


_NOT_SETTINGS = ("overwrite", "resume_from_checkpoint", "output_dir", "run_name")


def _checkpoint_of(config: ErrataConfig, folder: Path) -> Path | None:
    if config.resume_from_checkpoint:
        path = Path(str(config.resume_from_checkpoint))
        if not (path / "errata_state" / "complete").is_file():
            raise ValueError(f"resume_from_checkpoint: {path} is not a complete checkpoint of errata")
        return path
    found = complete_checkpoints(folder)
    return found[-1] if found else None


def _step_of(checkpoint: Path | None) -> int:
    return -1 if checkpoint is None else int(checkpoint.name.rsplit("-", 1)[1])


def quiet() -> None:
    """Leave the terminal to the run's own words; TRANSFORMERS_VERBOSITY brings the libraries' back."""
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl|torch")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        datasets.disable_progress_bars()


def _announce(console: Console, trainer: ErrataTrainer, recipe: Recipe, checkpoint: Path | None) -> None:
    if not trainer.is_world_process_zero():
        return
    config = recipe.config
    size = sum(p.numel() for p in trainer.model.parameters())
    teacher = "no teacher" if trainer.teacher is None else f"{trainer.teacher.kind} teacher"
    console.print(
        f"{config.method} on {config.task or recipe.script.dataset_name}: policy {config.model} "
        f"({size / 1e6:.1f} M parameters), {teacher}, "
        f"{config.generation_batch_size // config.num_generations} problems x {config.num_generations} rollouts a step",
        highlight=False,
    )
    if checkpoint is not None:
        console.print(f"resuming from {checkpoint}", highlight=False)


def _finish(console: Console, trainer: ErrataTrainer, run: RunDirectory, seconds: float) -> None:
    if trainer.eval_dataset is not None:
        rows = run.read("eval")
        if not rows or rows[-1]["step"] != trainer.state.global_step:
            trainer.evaluate()
    if not trainer.is_world_process_zero():
        return
    last = trainer.evaluator.last_rollouts
    samples = [_sample_row(r) for r in _examples(last, trainer.method.success_threshold)]
    _show(console, run, samples or run.read("rollouts")[-3:], trainer.method.success_threshold)
    run.finish()
    console.print(f"run: {run.path}  ({trainer.state.global_step} steps, {seconds:.0f} s)", highlight=False)


def _show(console: Console, run: RunDirectory, samples: list[dict[str, Any]], threshold: float) -> None:
    rows = run.read("eval")
    if rows:
        console.print(before_after(rows[0], rows[-1]))
    console.print(rollout_samples(samples, threshold=threshold))


def _examples(rollouts: Sequence[Rollout], threshold: float, n: int = 3) -> list[Rollout]:
    """``n`` rollouts of different problems: failures with feedback first, and one that is solved."""
    chosen: dict[str, Rollout] = {}
    for rollout in sorted(rollouts, key=lambda r: (not r.verdict.feedback, r.index)):
        chosen.setdefault(rollout.problem_id, rollout)
    solved = next((r for r in rollouts if r.solved(threshold)), None)
    others = [r for r in chosen.values() if solved is None or r.problem_id != solved.problem_id]
    return others[:n] if solved is None else [*others[: n - 1], solved]


def _sample_row(rollout: Rollout) -> dict[str, Any]:
    return {
        "problem_id": rollout.problem_id,
        "prompt": rollout.prompt,
        "completion": rollout.completion,
        "reward": rollout.reward,
        "kind": rollout.verdict.kind,
        "feedback": rollout.verdict.feedback,
    }
