"""``errata compare``: every method × seed as a run of its own, side by side, then one table and one report.

A comparison is a directory: ``recipes/`` holds each cell's recipe, ``logs/`` its output, and every cell is a run directory
like any other. So a comparison that was interrupted goes on where it stopped, and one that is finished can be given more
methods or seeds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from errata import methods
from errata.commands.train import quiet
from errata.recipe.config import ErrataConfig
from errata.recipe.read import Recipe, files_beside, read
from errata.recipe.text import recipe_file
from errata.reports.compare import compare as compared
from errata.reports.compare import table, teachers_differ
from errata.reports.html import write_report
from errata.reports.lock import Lock, holder
from errata.reports.rundir import RunDirectory
from errata.reports.runs import PLAN, load, tunings
from errata.training import interrupt

LINE_EVERY_S = 30.0
"""Without a terminal, seconds between two lines about each run."""
TUNING_PROBLEMS = 128
"""Training problems a trial is judged on, and test problems where the recipe has no evaluation of its own, unless its
``eval_problems`` says otherwise."""
_OURS = ("method", "seed", "method_args", "compare")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    label: str
    seed: int
    name: str
    settings: Mapping[str, Any]
    """A whole recipe, ``output_dir`` apart."""


def compare(
    recipe: str,
    labels: Sequence[str],
    seeds: int,
    jobs: int | None,
    tune: int,
    rest: Sequence[str],
    *,
    target: float | None = None,
) -> int:
    """Run the comparison, or what is missing of it. Returns 1 if a cell failed, else 0.

    Args:
        recipe: as for ``errata train``; its mapping ``compare`` holds what differs by label. A label is a method, or an
            entry of ``compare`` with a ``method`` of its own: ``mean: {method: distil, method_args: {credit: mean}}``.
        labels: what to compare.
        seeds: runs per label, with the recipe's seed and those after it.
        jobs: runs at a time; by default as many as there are GPUs, or cores.
        tune: learning rates each label tries, with a seed of its own, judged on training problems.
        rest: further flags for every run.
        target: as in :func:`errata.reports.compare.compare`.
    Raises:
        ValueError: anything the user can mend, before the first run begins.
    """
    quiet()
    base, modules = _recipe(Path(recipe)), str(recipe_file(Path(recipe)).resolve().parent)
    folder, overwrite, rest = _our_flags(rest, default=Path("runs") / f"compare-{Path(recipe).stem}")
    _check(labels, seeds, jobs, tune, rest)
    with interrupt.handled(), Lock(folder):
        try:
            return _compare(base, modules, folder, overwrite, labels, seeds, jobs, tune, rest, target)
        except interrupt.Interrupted as stop:
            print(
                f"errata: {stop}: interrupted, and its runs have ended; the same command resumes them", file=sys.stderr
            )
            return stop.status


def _compare(
    base: Mapping[str, Any],
    modules: str,
    folder: Path,
    overwrite: bool,
    labels: Sequence[str],
    seeds: int,
    jobs: int | None,
    tune: int,
    rest: Sequence[str],
    target: float | None,
) -> int:
    settings = {label: settings_of(base, label) for label in labels}
    console = Console()
    used = {label: methods.get(s["method"], **s.get("method_args", {})).settings() for label, s in settings.items()}
    for warning in teachers_differ(used):  # now, and again beside the results
        console.print(f"note: {warning}", highlight=False, markup=False)
    team = Team(folder, rest, jobs, overwrite, console, modules)
    first_seed = int(base.get("seed", ErrataConfig.__dataclass_fields__["seed"].default))
    tuning: dict[str, Any] = {}
    if tune:
        trials = [cell for label in labels for cell in trials_of(label, settings[label], tune, seed=first_seed + 1000)]
        failed = team.run(trials, "tuning")
        if failed:
            console.print(
                f"[bold red]{len(failed)} trials failed[/]: {', '.join(failed)}; the same command runs them again"
            )
            return 1
        for label in labels:
            tuning[label] = _best_rate(folder, [t for t in trials if t.label == label])
            settings[label] |= {"learning_rate": tuning[label]["learning_rate"]}
    cells = [
        Cell(label, seed, f"{_file(label)}-seed{seed}", {**settings[label], "seed": seed})
        for label in labels
        for seed in range(first_seed, first_seed + seeds)
    ]
    _write(folder / PLAN, _plan(cells, team.jobs, tuning))  # so that an interrupted comparison can be reported
    failed = team.run(cells, "compare")
    return _conclude(console, folder, cells, failed, team.jobs, tuning, target)


def settings_of(base: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The recipe of one label: the base, what ``compare`` says of it over that, and the method.

    The base's ``method_args`` are meant for its own method and go to no other. Raises ``ValueError`` for a label that is
    neither a method nor in ``compare``.
    """
    entries = base.get("compare") or {}
    entry = entries.get(label) or {}
    if not isinstance(entry, Mapping):
        raise ValueError(f"compare: {label}: must be a mapping of argument names to values")
    method = entry.get("method", label)
    if label not in entries:
        methods.get(method)  # says what is known
    own = dict(base.get("method_args") or {}) if method == base.get("method", "distil") else {}
    args = {**own, **(entry.get("method_args") or {})}
    methods.get(method, **args)
    settings = {k: v for k, v in {**base, **entry}.items() if k not in _OURS} | {"method": method}
    if settings.get("eval_strategy") in (None, False, "no"):  # YAML reads a bare `no` as false
        few = settings.get("eval_problems") or TUNING_PROBLEMS  # evaluations that nobody asked for must be quick
        settings |= {"eval_strategy": "steps", "eval_steps": 0.2, "eval_on_start": True, "eval_problems": few}
    return settings | ({"method_args": args} if args else {})


def trials_of(label: str, settings: Mapping[str, Any], tune: int, *, seed: int) -> list[Cell]:
    """Runs of one label that differ in their learning rate, the label's own first."""
    rate = float(settings.get("learning_rate", ErrataConfig.__dataclass_fields__["learning_rate"].default))
    judged = {"eval_split": "train", "seed": seed, "eval_on_start": False}
    judged["eval_problems"] = settings.get("eval_problems") or TUNING_PROBLEMS
    if not settings.get("task"):
        judged["dataset_test_split"] = settings.get("dataset_train_split", "train")
    return [
        Cell(
            label,
            seed,
            f"tuning/{_file(label)}-lr{rate * factor:.2g}",
            {**settings, **judged, "learning_rate": rate * factor},
        )
        for factor in grid(tune)
    ]


def grid(trials: int) -> list[float]:
    """Factors around 1, half a decade apart: ``[1, 3.16, 0.316, 10, ...]``."""
    exponents = [(i + 1) // 2 * (1 if i % 2 else -1) / 2 for i in range(trials)]
    return [float(f"{10**e:.3g}") for e in exponents]


class Team:
    """Runs cells as processes, so many at a time, and shows how far they are.

    ``modules``: the folder of the comparison's recipe, beside which a user's own modules may lie.
    """

    def __init__(
        self,
        folder: Path,
        rest: Sequence[str],
        jobs: int | None,
        overwrite: bool,
        console: Console,
        modules: str | None = None,
    ) -> None:
        self._modules = modules
        self._folder, self._rest, self._overwrite, self._console = folder, list(rest), overwrite, console
        self._gpus = torch.cuda.device_count()
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.jobs = jobs or self._gpus or self._cores
        self._steps: dict[str, int | None] = {}
        self._pipe = os.pipe()

    def run(self, cells: Sequence[Cell], title: str) -> list[str]:
        """Run those that are not finished; the names of those that failed.

        Raises ``ValueError`` if a cell was begun with other settings.
        """
        missing = [cell for cell in cells if not self._prepare(cell)]
        failed: list[str] = []
        running: dict[int, tuple[Cell, subprocess.Popen[bytes], TaskID]] = {}
        said: set[str] = set()
        due = time.monotonic() + LINE_EVERY_S
        threads = max(self._cores // max(min(self.jobs, len(missing)), 1), 1)
        with self._progress() as progress:
            whole = progress.add_task(title, total=len(cells), completed=len(cells) - len(missing), note="")
            try:
                while missing or running:
                    for slot in range(self.jobs):
                        if slot not in running and (free := self._next(missing, said)) is not None:
                            cell = free
                            running[slot] = (
                                cell,
                                self._start(cell, slot, threads),
                                progress.add_task(f"  {cell.name}", total=None, note=""),
                            )
                    time.sleep(0.3)
                    if progress.disable and time.monotonic() > due:  # no terminal to show bars on
                        due = time.monotonic() + LINE_EVERY_S
                        for cell, _, _ in running.values():
                            self._console.print(self._line(cell), highlight=False, markup=False)
                    for slot, (cell, process, task) in list(running.items()):
                        status = process.poll()
                        self._show(progress, task, cell)
                        if status is None:
                            continue
                        del running[slot]
                        progress.remove_task(task)
                        progress.advance(whole)
                        if status:
                            failed.append(cell.name)
                        self._console.print(self._verdict(cell, status), highlight=False, markup=False)
            finally:
                self._end([process for _, process, _ in running.values()])
        return failed

    def _next(self, missing: list[Cell], said: set[str]) -> Cell | None:
        """Take the next cell that no other process is running; ``None`` if all that are left are being run.

        Such a process was started by hand, or by an earlier comparison whose end it has not noticed yet.
        """
        for cell in list(missing):
            other = holder(self._folder / cell.name)
            if other is None:
                missing.remove(cell)
                return cell
            if cell.name not in said:
                said.add(cell.name)
                self._console.print(f"{cell.name}: waiting for {other}, which runs it", highlight=False, markup=False)
        return None

    @staticmethod
    def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """End runs by SIGTERM, on which they save; those left after a minute by SIGKILL."""
        with interrupt.deferred():
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + interrupt.GRACE_S
            for process in processes:
                try:
                    process.wait(max(deadline - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _prepare(self, cell: Cell) -> bool:
        """Write the cell's recipe; whether it is finished already."""
        file = self._folder / "recipes" / f"{cell.name}.yaml"
        run = RunDirectory(self._folder / cell.name)
        settings = {**cell.settings, "output_dir": str(run.path)}
        told = f"# errata train {' '.join([file.name, *self._rest])}\n"
        told += yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        if (
            file.is_file()
            and file.read_text(encoding="utf-8") != told
            and not self._overwrite
            and (run.finished or run.checkpoints())
        ):
            raise ValueError(
                f"output_dir: {run.path} was run with other settings (see {file}); "
                "choose another --output_dir, or --overwrite true runs all anew"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(told, encoding="utf-8")
        recipe = read(file, self._rest)  # a mistake is said now, not by every run
        config = recipe.config
        _check_evaluates(recipe)
        self._steps[cell.name] = config.max_steps if config.max_steps > 0 else None
        return run.finished and not self._overwrite

    def _start(self, cell: Cell, slot: int, threads: int) -> subprocess.Popen[bytes]:
        recipe, log = self._folder / "recipes" / f"{cell.name}.yaml", self._log(cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "errata", "train", str(recipe), *self._rest]
        command += ["--overwrite", "true"] if self._overwrite else []
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "PYTHONUNBUFFERED": "1",
        }
        if self._modules:
            paths = [self._modules, *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        if self._gpus and self.jobs > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(i) for i in range(self._gpus)]
            environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        # Each run gets the reading end of a pipe. The writing end closes when this process ends, for whatever reason, and the
        # run notices. A session of its own keeps Ctrl-C from reaching the run: this process ends it once, and it saves.
        environment[interrupt.PARENT] = str(self._pipe[0])
        with log.open("wb") as out:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(self._pipe[0],),
                start_new_session=True,
            )

    def _log(self, cell: Cell) -> Path:
        return self._folder / "logs" / f"{cell.name}.log"

    def _progress(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        return Progress(*columns, console=self._console, disable=not self._console.is_terminal)

    def _show(self, progress: Progress, task: TaskID, cell: Cell) -> None:
        row = None if progress.disable else self._last_row(cell)
        if row is not None:
            progress.update(task, completed=row["step"], total=self._steps[cell.name], note=_note(row))

    def _line(self, cell: Cell) -> str:
        """How far a running cell is."""
        row = self._last_row(cell)
        if row is None:
            return f"{cell.name}: starting"
        steps = self._steps[cell.name]
        return f"{cell.name}: step {row['step']}{f'/{steps}' if steps else ''}  {_note(row)}".rstrip()

    def _last_row(self, cell: Cell) -> dict[str, Any] | None:
        """The last of the cell's ``metrics.jsonl``."""
        return RunDirectory(self._folder / cell.name).last("metrics")

    def _verdict(self, cell: Cell, status: int) -> str:
        if status:
            lines = self._log(cell).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return f"{cell.name}: failed ({lines[-1][:200] if lines else f'status {status}'}); see {self._log(cell)}"
        rows = RunDirectory(self._folder / cell.name).read("eval")
        row = self._last_row(cell) or {}
        if rows:
            name = f"avg@{rows[-1]['k']}"
            row = {**row, name: rows[-1][name]}
        return f"{cell.name}: {_note(row) or 'done'}"


def _conclude(
    console: Console,
    folder: Path,
    cells: Sequence[Cell],
    failed: Sequence[str],
    jobs: int,
    tuning: Mapping[str, Any],
    target: float | None,
) -> int:
    """Table, ``compare.json`` and report of the cells that ran."""
    plan = _plan(cells, jobs, tuning)
    _write(folder / PLAN, plan)
    if len(failed) < len(cells):
        comparison = compared(load([folder]), target=target)
        _write(folder / PLAN, {**plan, "table": comparison.as_dict()})
        with (folder / "table.txt").open("w", encoding="utf-8") as file:
            Console(file=file, width=160).print(table(comparison))
        console.print(table(comparison))
        for warning in comparison.warnings:
            console.print(f"note: {warning}", highlight=False, markup=False)
        if jobs > 1:
            console.print(f"Times were taken with up to {jobs} runs at a time.", style="dim", highlight=False)
        console.print(f"report: {write_report([folder], target=target)}", highlight=False)
    for tuned in tunings(tuning):
        of = f", the {tuned.end}: try more, --tune {len(tuned.trials) + 2}" if tuned.end else ""
        console.print(
            f"{tuned.label}: learning rate {tuned.chosen:g}, the best of {len(tuned.trials)}{of}", highlight=False
        )
    if failed:
        console.print(f"failed: {', '.join(failed)}; the same command runs them again", highlight=False)
    return int(bool(failed))


def _plan(cells: Sequence[Cell], jobs: int, tuning: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cells": [{"path": c.name, "label": c.label, "seed": c.seed} for c in cells],
        "jobs": jobs,
        "tuning": tuning,
    }


def _best_rate(folder: Path, trials: Sequence[Cell]) -> dict[str, Any]:
    """The trial with the highest last avg@k; of equal ones the first, nearest to the recipe's own rate."""
    found = []
    for trial in trials:
        row = RunDirectory(folder / trial.name).read("eval")[-1]
        found.append({"learning_rate": trial.settings["learning_rate"], "avg": row[f"avg@{row['k']}"]})
    best = max(found, key=lambda trial: trial["avg"])
    return {"learning_rate": best["learning_rate"], "trials": found}


def _check(labels: Sequence[str], seeds: int, jobs: int | None, tune: int, rest: Sequence[str]) -> None:
    if not labels:
        raise ValueError("methods: name at least one, with commas: --methods grpo,distil")
    if len({*labels}) < len(labels):
        raise ValueError(f"methods: {', '.join(labels)}: one is named twice")
    for name, value, least in (("seeds", seeds, 1), ("jobs", jobs, 1), ("tune", tune, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name}: {value}; must be at least {least}")
    for word in rest:
        name = word.removeprefix("--").split("=")[0].split(".")[0]
        if word.startswith("--") and name in (*_OURS, "run_name"):
            raise ValueError(
                f"{name}: set by the comparison; write it in the recipe, under `compare:` for one method alone"
            )
        if word.startswith("--") and name == "learning_rate" and tune:
            raise ValueError("learning_rate: --tune chooses it; drop one of the two")


def _check_evaluates(recipe: Recipe) -> None:
    """Raises ``ValueError`` where the rows are one file, and nothing says on which rows the runs are compared."""
    config, script = recipe.config, recipe.script
    named = config.task or config.tasks or config.eval_dataset_name or script.dataset_test_split == "train"
    if not named and script.dataset_name and Path(script.dataset_name).expanduser().is_file():
        raise ValueError(
            f"eval_dataset_name: runs are compared on rows to evaluate on, and {script.dataset_name} has none; name a file of "
            "them, or set dataset_test_split: train to compare on the rows that are trained on"
        )


def _our_flags(rest: Sequence[str], *, default: Path) -> tuple[Path, bool, list[str]]:
    """``output_dir`` and ``overwrite`` of the comparison itself, and the flags that are left."""
    found: dict[str, str] = {}
    left: list[str] = []
    words = [part for word in rest for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        word = words.pop(0)
        if word in ("--output_dir", "--overwrite"):
            if not words:
                raise ValueError(f"{word}: needs a value")
            found[word] = words.pop(0)
        else:
            left.append(word)
    return Path(found.get("--output_dir", default)), found.get("--overwrite", "").lower() in ("true", "1", "yes"), left


def _recipe(path: Path) -> dict[str, Any]:
    path = recipe_file(path)
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path}: must be a mapping of argument names to values")
    # What differs by method goes over what differs by machine.
    on_gpu = given.pop("on_gpu", None) or {}
    given |= on_gpu if torch.cuda.is_available() else {}
    given = files_beside(given, path.resolve().parent)  # each run has a recipe of its own, elsewhere
    if isinstance(entries := given.get("compare"), dict):
        own = {k: files_beside(v, path.resolve().parent) if isinstance(v, dict) else v for k, v in entries.items()}
        given["compare"] = own
    return {k: v for k, v in given.items() if k not in ("output_dir", "run_name", "overwrite")}


def _note(row: Mapping[str, Any]) -> str:
    """The reward and the accuracy of a row, for one line."""
    shown = {name: row[name] for name in row if name == "reward" or name.startswith("avg@")}
    return "  ".join(f"{name} {value:.3f}" for name, value in shown.items() if isinstance(value, int | float))


def _file(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
