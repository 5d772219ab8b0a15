"""``errata train``: from a recipe to a run directory."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.console import Console
from transformers.utils import logging

from errata.commands.allocator import keep_memory
from errata.commands.preflight import before_training
from errata.commands.progress import Progress
from errata.recipe.build import build_trainer, method_of
from errata.recipe.config import ErrataConfig
from errata.recipe.read import Recipe, read
from errata.records import Rollout
from errata.reports import lock
from errata.reports.rundir import RunDirectory
from errata.reports.rundir import plain as _plain
from errata.reports.table import before_after, rollout_samples
from errata.training import checkpoint as checkpoints
from errata.training import interrupt
from errata.training.trainer import ErrataTrainer


def train(path: str | None, overrides: Sequence[str]) -> int:
    """Run the recipe, or resume the run of that name if it was interrupted.

    Returns the exit status: 0, or 128 + the signal's number if a signal ended the run.
    """
    quiet()
    with interrupt.handled():
        try:
            return _train(read(path, overrides))
        except interrupt.Interrupted as stop:
            print(f"errata: {stop}: interrupted; the same command resumes the run", file=sys.stderr)
            return stop.status


def _train(recipe: Recipe) -> int:
    recipe.set_environment()
    console = Console()
    run = RunDirectory(_directory_of(console, recipe))
    if is_main_process() and (writer := lock.holder(run.path)) is not None:
        raise ValueError(lock.refusal("output_dir", run.path, writer))
    if is_main_process() and not recipe.config.overwrite:
        for note in checkpoints.repair(run):
            console.print(note, highlight=False, soft_wrap=True)
    if run.finished and not recipe.config.overwrite and run.config() == _plain(_resolved(recipe)):
        console.print(
            f"{run.path} holds this very run, finished; --overwrite true runs it anew", highlight=False, soft_wrap=True
        )
        _show(console, run, run.read("rollouts")[-3:], method_of(recipe).success_threshold)
        return 0
    if recipe.config.use_cpu or not torch.cuda.is_available():
        keep_memory()
    trainer = build_trainer(recipe, run.write)
    trainer.add_callback(Progress(run, recipe.config.eval_k))
    with lock.Lock(run.path) if is_main_process() else nullcontext():
        checkpoint = _open_run(console, recipe, run)
        if checkpoint is not None:
            trainer.args.eval_on_start = False  # the evaluation of the untrained policy is there already
        _announce(console, trainer, recipe, checkpoint)
        started = time.perf_counter()
        try:
            if checkpoint is None:
                before_training(console, trainer, recipe.config.method)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if trainer.stopped:
                raise interrupt.Interrupted(interrupt.received() or signal.SIGTERM)
            _finish(console, trainer, run, time.perf_counter() - started)
        except interrupt.Interrupted:
            saved = trainer.save_interrupted()
            if saved is not None and trainer.is_world_process_zero():
                console.print(f"saved {saved}", highlight=False, soft_wrap=True)
            trainer.accelerator.end_training()
            raise
        trainer.accelerator.end_training()  # processes that leave with their group open can abort at the very end
    return 0


def _directory_of(console: Console, recipe: Recipe) -> Path:
    """The run's directory, the same on all processes. One that the recipe's name gives, and that holds a run with other settings,
    is left to that run: this one gets ``NAME-2`` and so on, always the same for the same settings."""
    config = recipe.config
    chosen = [str(config.output_dir)]
    named = "output_dir" in recipe.given or config.overwrite or config.resume_from_checkpoint
    if is_main_process() and not named:
        settings, base = _resolved(recipe), RunDirectory(chosen[0])
        run, number = base, 1
        while not run.damaged() and run.has_results and run.differing(settings):
            number += 1
            run = RunDirectory(base.path.with_name(f"{base.path.name}-{number}"))
        if number > 1:
            console.print(
                f"{base.path} holds a run with another {', '.join(base.differing(settings))}; this one is {run.path}",
                highlight=False,
                soft_wrap=True,
            )
        chosen = [str(run.path)]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(chosen, src=0)
    config.output_dir = chosen[0]
    return Path(chosen[0])


def is_main_process() -> bool:
    """Whether this process writes the run directory. Known before any library has set up the other processes."""
    return os.environ.get("RANK", "0") == "0"


def _open_run(console: Console, recipe: Recipe, run: RunDirectory) -> Path | None:
    """Begin or continue the run. Returns the checkpoint to resume from, or ``None`` to begin.

    The checkpoint is verified before anything is written.
    """
    config = recipe.config
    chosen: list[Path | None] = [None]
    if is_main_process():
        found = checkpoints.Found(None) if config.overwrite else _checkpoint_of(config, run.path)
        for note in found.notes:
            console.print(note, highlight=False, soft_wrap=True, markup=False)
        if run.finished and found.checkpoint is None and not config.overwrite:
            raise ValueError(
                f"output_dir: {run.path} holds a finished run without a checkpoint (save_strategy: no) to resume from; "
                f"--overwrite true runs it again, --model {run.path} with another --output_dir starts from its policy"
            )
        run.open(_resolved(recipe), overwrite=config.overwrite, resume=bool(config.resume_from_checkpoint))
        run.withdraw_policy()
        checkpoints.cut_rows(run, found.checkpoint)
        chosen = [found.checkpoint]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(chosen, src=0)
    return chosen[0]


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


def _checkpoint_of(config: ErrataConfig, folder: Path) -> checkpoints.Found:
    if not config.resume_from_checkpoint:
        return checkpoints.newest(folder)
    path = Path(str(config.resume_from_checkpoint))
    checkpoints.step_of(path)
    wrong = checkpoints.damage(path, rows=False)
    if wrong is not None:
        raise ValueError(f"resume_from_checkpoint: {path}: {wrong}; name an undamaged checkpoint that errata wrote")
    return checkpoints.Found(path)


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
        soft_wrap=True,
    )
    if checkpoint is not None:
        console.print(f"resuming from {checkpoint}", highlight=False, soft_wrap=True)


def _finish(console: Console, trainer: ErrataTrainer, run: RunDirectory, seconds: float) -> None:
    part = run.path / "policy.part"
    trainer.save_policy(part)
    if trainer.is_world_process_zero():
        run.publish_policy(part)
    if trainer.eval_dataset is not None:
        rows = run.read("eval")
        if not rows or rows[-1]["step"] != trainer.state.global_step:
            trainer.evaluate()
    trainer.create_model_card()
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    if not trainer.is_world_process_zero():
        return
    last = trainer.evaluator.last_rollouts
    samples = [_sample_row(r) for r in _examples(last, trainer.method.success_threshold)]
    _show(console, run, samples or run.read("rollouts")[-3:], trainer.method.success_threshold)
    run.finish()
    console.print(
        f"run: {run.path}  ({trainer.state.global_step} steps, {seconds:.0f} s)", highlight=False, soft_wrap=True
    )


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
