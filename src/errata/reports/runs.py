"""Runs in memory: their rows, time and tokens by step, and which runs differ in their seed alone."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from errata.reports.rundir import RunDirectory
from errata.validate import check

PLAN = "compare.json"
"""The file that a comparison's directory has and a run's has not. It holds the table's numbers, and ``cells``, each
``{path, label, seed}``."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One run directory, read into memory."""

    path: Path
    name: str
    label: str
    """Name of its group: the method, and the settings in which it differs from other groups."""
    config: Row
    env: Row
    metrics: Sequence[Row]
    evals: Sequence[Row]

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def success_threshold(self) -> float:
        """The reward from which a rollout of this run counts as solved: the method's setting, 1.0 if not recorded."""
        value = (self.config.get("method_settings") or {}).get("success_threshold")
        return 1.0 if value is None else float(value)

    @property
    def k(self) -> int | None:
        """Rollouts per problem in the run's evaluations; ``None`` without an evaluation."""
        return self.evals[-1]["k"] if self.evals else None

    @property
    def steps(self) -> int:
        """The last step that has a row."""
        return max((int(row["step"]) for row in (*self.metrics[-1:], *self.evals[-1:])), default=0)

    def rollouts(self) -> list[dict[str, Any]]:
        """The rows of ``rollouts.jsonl``, read on every call, because they are most of a run's data."""
        return checked_rows(RunDirectory(self.path), "rollouts")

    def eval_rollouts(self) -> list[dict[str, Any]]:
        """The rows of ``eval_rollouts.jsonl``, read on every call."""
        return RunDirectory(self.path).read("eval_rollouts")

    @property
    def rollouts_per_step(self) -> int:
        """Rollouts per optimizer step; of one process if the run did not record its generation batch size."""
        recorded = self.config.get("generation_batch_size")
        rows = self.config.get("per_device_train_batch_size") or 8  # TRL's default
        return int(recorded or int(rows) * int(self.config.get("gradient_accumulation_steps") or 1))

    @cached_property
    def clock(self) -> tuple[list[int], list[float], list[float]]:
        """Logged steps, and up to each: seconds of training (without evaluation) and generated tokens."""
        steps, seconds, tokens = [0], [0.0], [0.0]
        for row in self.metrics:
            passed = int(row["step"]) - steps[-1]
            steps.append(int(row["step"]))
            seconds.append(seconds[-1] + (row.get("step_time") or 0.0) * passed)
            length = row.get("completions/mean_length") or 0.0
            tokens.append(tokens[-1] + length * self.rollouts_per_step * passed)
        return steps, seconds, tokens

    def seconds_at(self, step: int) -> float:
        """Seconds of training up to ``step``."""
        steps, seconds, _ = self.clock
        return seconds[bisect.bisect_right(steps, step) - 1]

    def tokens_at(self, step: int) -> float:
        """Tokens generated in training up to ``step``."""
        steps, _, tokens = self.clock
        return tokens[bisect.bisect_right(steps, step) - 1]


_ROW_KEYS: dict[str, tuple[str, ...]] = {"metrics": (), "eval": ("step", "k"), "rollouts": ("step",)}
"""Whole numbers that a row must have."""
_OTHER: Mapping[str, Any] = {
    "task": object,
    "split": object,
    "pass_curve": list[float],
    "sampling": dict[str, Any],
}
"""Values of a row that are no number, with their types."""
_CONFIG = (
    (str | None, ("method", "task", "model")),
    (int | None, ("seed", "generation_batch_size", "per_device_train_batch_size", "max_steps")),
    (dict[str, Any] | None, ("method_settings",)),
)
_ENV = ((dict[str, Any] | None, ("git", "versions")), (list[str] | None, ("resumed", "argv")))
"""Types of the settings and facts that a report reads, with their names."""


def checked_rows(directory: RunDirectory, stream: str) -> list[dict[str, Any]]:
    """The rows of a stream. Raises ``ValueError`` naming the row of one that errata did not write so."""
    rows = directory.read(stream)
    for number, row in enumerate(rows, 1):
        where = f"run: row {number} of {directory.path / f'{stream}.jsonl'}: "
        for name in _ROW_KEYS[stream]:
            check(f"{where}{name}", row.get(name), int)
        for name, value in row.items() if stream != "rollouts" else ():
            check(f"{where}{name}", value, _OTHER.get(name, bool | float | None))
    return rows


def _checked(path: Path, found: Mapping[str, Any], kinds: Iterable[tuple[Any, Iterable[str]]]) -> Mapping[str, Any]:
    for kind, names in kinds:
        for name in names:
            check(f"run: {path}: {name}", found.get(name), kind)
    return found


def load(paths: Iterable[str | Path]) -> list[Run]:
    """The runs at ``paths``. A comparison's directory counts as all its runs that are finished.

    Raises ``ValueError`` for a path that is neither, and if there are no runs.
    """
    found: list[tuple[Path, str | None]] = []
    for path in map(Path, paths):
        found += _cells(path) if (path / PLAN).is_file() else [(path, None)]
    if not found:
        raise ValueError("run: there is none to report on; name a run directory")
    unique = {path.resolve(): (path, label) for path, label in found}
    found_configs = {
        path: _checked(path / "config.yaml", RunDirectory(path).config(), _CONFIG) for path, _ in unique.values()
    }
    configs = {path: _settings(config) for path, config in found_configs.items()}
    labels = _labels(configs)
    names = _names(list(configs))
    runs = []
    for path, label in unique.values():
        directory = RunDirectory(path)
        runs.append(
            Run(
                path=path,
                name=names[path],
                label=label or labels[path],
                config=found_configs[path],
                env=_checked(path / "env.json", directory.env(), _ENV),
                metrics=[row for row in checked_rows(directory, "metrics") if row.get("step") is not None],
                evals=checked_rows(directory, "eval"),
            )
        )
    return runs


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that differ in their seed alone, by label, in the order given."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def unfinished(paths: Iterable[str | Path]) -> list[str]:
    """Names of the cells of comparisons at ``paths`` that have not finished: interrupted, failed, or not begun."""
    comparisons = [path for path in map(Path, paths) if (path / PLAN).is_file()]
    return [c["path"] for path in comparisons for c in _plan(path) if not _has_finished(path / c["path"])]


@dataclass(frozen=True)
class Tuning:
    """The learning rates that one label of a comparison tried before its runs."""

    label: str
    chosen: float
    trials: Sequence[tuple[float, float | None]]
    """Learning rate and last avg@k on training problems, in the order of the rates."""

    @property
    def end(self) -> str:
        """``highest`` or ``lowest`` where the best rate is the last of those tried in that direction, else empty.

        Empty, too, where all rates came to the same.
        """
        rates = [rate for rate, _ in self.trials]
        if len({score for _, score in self.trials}) < 2:
            return ""
        return "highest" if self.chosen == max(rates) else "lowest" if self.chosen == min(rates) else ""


def tunings(tuning: Mapping[str, Mapping[str, Any]]) -> list[Tuning]:
    """What a comparison's plan says about its tuning."""
    return [
        Tuning(
            label,
            tuned["learning_rate"],
            sorted((trial["learning_rate"], trial.get("avg")) for trial in tuned.get("trials") or []),
        )
        for label, tuned in tuning.items()
    ]


def trials(paths: Iterable[str | Path]) -> list[Tuning]:
    """The tuning of the comparisons at ``paths``, by label."""
    plans = [path / PLAN for path in map(Path, paths) if (path / PLAN).is_file()]
    return [t for plan in plans for t in tunings(json.loads(plan.read_text(encoding="utf-8")).get("tuning") or {})]


def _cells(path: Path) -> list[tuple[Path, str | None]]:
    cells = _plan(path)
    found: list[tuple[Path, str | None]] = [
        (path / c["path"], c["label"]) for c in cells if _has_finished(path / c["path"])
    ]
    if not found:
        names = ", ".join(c["path"] for c in cells)
        raise ValueError(
            f"run: none of the comparison {path} has finished ({names}); the same `errata compare` command continues it"
        )
    return found


def _plan(path: Path) -> list[dict[str, Any]]:
    try:
        cells = json.loads((path / PLAN).read_text(encoding="utf-8"))["cells"]
        return [{"path": str(c["path"]), "label": c["label"]} for c in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"run: {path / PLAN} is damaged; the same `errata compare` command writes it again") from error


def _has_finished(path: Path) -> bool:
    return (path / "config.yaml").is_file() and RunDirectory(path).finished


def _settings(config: Row) -> dict[str, str]:
    """Settings as flat texts, without the seeds. The method's settings are taken from ``method_settings``."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if key in ("seed", "data_seed", "method_args"):
            continue
        inner = value if isinstance(value, Mapping) else {"": value}
        flat |= {name or key: str(item) for name, item in inner.items()}
    return flat


def _labels(configs: Mapping[Path, Mapping[str, str]]) -> dict[Path, str]:
    """Each run's method. If runs of one method differ, also the settings in which they differ."""
    labels = {}
    for path, config in configs.items():
        method = config.get("method", "distil")
        others = [c for c in configs.values() if c.get("method", "distil") == method]
        differing = [key for key in config if any(c.get(key) != config[key] for c in others)]
        labels[path] = ", ".join([method, *(f"{key} {config[key]}" for key in differing)])
    return labels


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Each path's last part. If two are equal, the last two parts."""
    last = [path.resolve().name for path in paths]
    return {
        path: name if last.count(name) == 1 else "/".join(path.resolve().parts[-2:])
        for path, name in zip(paths, last, strict=True)
    }
