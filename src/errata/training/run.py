"""``errata train``: from a recipe to a run directory."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PrinterCallback
from transformers.utils import logging
from trl import get_peft_config, get_quantization_config

from errata import methods
from errata.records import Rollout
from errata.reports.rundir import RunDirectory
from errata.reports.rundir import plain as _plain
from errata.reports.table import before_after, rollout_samples
from errata.training import sources
from errata.training.allocator import keep_memory
from errata.training.compat import complete_checkpoints
from errata.training.config import ErrataConfig
from errata.training.experts import expert_of
from errata.training.progress import Progressing
from errata.training.recipe import Recipe, read
from errata.training.trainer import ErrataTrainer


def train(path: str, overrides: list[str]) -> int:
    """Run the recipe; resume the run of that name where one was interrupted."""
    quiet()
    recipe = read(path, overrides)
    console = Console()
    run = RunDirectory(Path(str(recipe.config.output_dir)))
    if run.finished and not recipe.config.overwrite and run.config() == _plain(_resolved(recipe)):
        console.print(f"{run.path} holds this very run, finished; --overwrite true runs it anew", highlight=False)
        _show(console, run, run.read("rollouts")[-3:])
        return 0
    if recipe.config.use_cpu or not torch.cuda.is_available():
        keep_memory()
    trainer = build_trainer(recipe, run)
    checkpoint = _open_run(recipe, run)
    _announce(console, trainer, recipe, checkpoint)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _finish(console, trainer, run, time.perf_counter() - started)
    trainer.accelerator.end_training()  # processes that leave with their group open can abort at the very end
    return 0


def build_trainer(recipe: Recipe, run: RunDirectory | None = None) -> ErrataTrainer:
    """The trainer a recipe describes. All its inputs are checked first, the cheap ones before the dear ones.

    Raises ``ValueError`` in one line for anything the user can mend.
    """
    config, model_args = recipe.config, recipe.model
    method = methods.get(config.method, **sources.mapping(config.method_args))
    verifiers = sources.verifiers_of(recipe)
    tools = sources.tools_of(config)
    train_split, test_split = "train", config.eval_split
    if config.task is None:
        train_split, test_split = recipe.script.dataset_train_split, recipe.script.dataset_test_split
    train_rows = sources.rows_of(recipe, split=train_split, task=config.task)
    sources.check_template_tasks(recipe, train_rows)
    eval_rows = None
    if config.eval_strategy != "no" or config.eval_on_start:
        eval_rows = sources.rows_of(recipe, split=test_split, task=config.eval_task or config.task)
        if config.eval_problems is not None:
            eval_rows = eval_rows.select(range(min(config.eval_problems, len(eval_rows))))
    if method.sources == ("reference",) and not any(
        train_rows["reference"] if "reference" in train_rows.column_names else []
    ):
        raise ValueError(
            f"method: {config.method} shows its teacher the reference, and no row has a 'reference'; "
            "use another method or add the column"
        )
    where = sources.model_path(str(config.model))
    tokenizer = sources.load_tokenizer(where, config.trust_remote_code)
    kwargs: dict[str, Any] = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
    }
    kwargs |= {"dtype": model_args.dtype or "float32", "trust_remote_code": config.trust_remote_code}
    kwargs |= {"quantization_config": get_quantization_config(model_args)}
    kwargs |= dict(config.model_init_kwargs or {})
    config.model_init_kwargs = None
    expert, access = expert_of(config, method, tokenizer)
    model = sources.load_model(where, **{k: v for k, v in kwargs.items() if v is not None})
    trainer = ErrataTrainer(
        model,
        verifiers,
        config,
        method=method,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        run=(lambda stem, row: None) if run is None else run.write,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        expert=expert,
        access=access,
        **tools,
    )
    trainer.remove_callback(PrinterCallback)  # the progress bar says it, and metrics.jsonl keeps it
    if run is not None:
        trainer.add_callback(Progressing(run, config.eval_k))
    return trainer


def _open_run(recipe: Recipe, run: RunDirectory) -> Path | None:
    """Begin or continue the run; the checkpoint to go on from where it was interrupted."""
    config = recipe.config
    if os.environ.get("RANK", "0") == "0":
        run.open(_resolved(recipe), overwrite=config.overwrite, resume=bool(config.resume_from_checkpoint))
        run.truncate_after(_step_of(_checkpoint_of(config, run.path)))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    checkpoint = _checkpoint_of(config, run.path)
    if checkpoint is not None:
        config.eval_on_start = False  # that evaluation is of the untrained policy, and already there
    return checkpoint


def _resolved(recipe: Recipe) -> dict[str, Any]:
    """The settings a run is told apart by: all that differ from TRL's and our defaults, and the method's, whole."""
    config, method = recipe.config, methods.get(recipe.config.method, **sources.mapping(recipe.config.method_args))
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
    _show(console, run, [_sample_row(r) for r in _telling(last)] if last else run.read("rollouts")[-3:])
    run.finish()
    console.print(f"run: {run.path}  ({trainer.state.global_step} steps, {seconds:.0f} s)", highlight=False)


def _show(console: Console, run: RunDirectory, samples: list[dict[str, Any]]) -> None:
    rows = run.read("eval")
    if rows:
        console.print(before_after(rows[0], rows[-1]))
    console.print(rollout_samples(samples))


def _telling(rollouts: list[Rollout], n: int = 3) -> list[Rollout]:
    """``n`` rollouts of different problems, failures with feedback first: they show what there was to learn from."""
    chosen: dict[str, Rollout] = {}
    for rollout in sorted(rollouts, key=lambda r: (not r.verdict.feedback, r.index)):
        chosen.setdefault(rollout.problem_id, rollout)
    solved = next((r for r in rollouts if (r.reward or 0) > 0), None)
    found = [r for r in chosen.values() if solved is None or r.problem_id != solved.problem_id][
        : n - (solved is not None)
    ]
    return found if solved is None else [*found, solved]


def _sample_row(rollout: Rollout) -> dict[str, Any]:
    return {
        "problem_id": rollout.problem_id,
        "prompt": rollout.prompt,
        "completion": rollout.completion,
        "reward": rollout.reward,
        "kind": rollout.verdict.kind,
        "feedback": rollout.verdict.feedback,
    }
