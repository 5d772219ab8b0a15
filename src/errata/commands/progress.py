"""Progress of a run on the terminal: one bar, the reward, the gap to the teacher, the last evaluation."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from errata.reports.rundir import RunDirectory

LINES = 20
"""Without a terminal (a log file), a line is printed about this many times in a run."""
HISTORY = 100
"""Logs that stay in memory and in each checkpoint's trainer_state.json: so many first ones, so many last ones, and all
evaluations. Without this a long run's memory and checkpoints grow."""


class Progress(TrainerCallback):  # type: ignore[misc]
    """Shows progress, and keeps every log in the run directory's ``metrics.jsonl``."""

    def __init__(self, run: RunDirectory, eval_k: int) -> None:
        self._run, self._k = run, eval_k
        self._console = Console()
        self._bar: Bar | None = None
        self._last: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if sys.stdout.isatty():
            self._bar = Bar(
                TextColumn("[bold]train"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("train", total=state.max_steps, completed=state.global_step, note="")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        middle = len(state.log_history) - HISTORY - 1
        if middle >= HISTORY and not any(name.startswith("eval_") for name in state.log_history[middle]):
            del state.log_history[middle]
        if not state.is_world_process_zero or not logs:
            return
        self._last |= {k: v for k, v in logs.items() if isinstance(v, int | float)}
        if not any(k.startswith("eval_") for k in logs) and "train_runtime" not in logs:
            self._run.write("metrics", {"step": state.global_step, **logs})
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, note=self._note())
        elif (
            "train_runtime" not in logs
            and state.max_steps
            and (any(k.startswith("eval_") for k in logs) or state.global_step % max(state.max_steps // LINES, 1) == 0)
        ):
            self._console.print(
                f"step {state.global_step:>5}/{state.max_steps}  {self._note()}", highlight=False, markup=False
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _note(self) -> str:
        shown = {
            "reward": "reward",
            "teacher/gap": "gap",
            f"eval_avg@{self._k}": f"avg@{self._k}",
            "eval_teacher_accuracy": "teacher",
        }
        return "  ".join(f"{name} {self._last[key]:.3f}" for key, name in shown.items() if key in self._last)
