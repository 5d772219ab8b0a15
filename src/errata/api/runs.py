"""Runs in Python: ``load_run`` reads one as data frames, ``compare`` trains several methods and compares them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from errata.commands.compare import compare as run_comparison
from errata.reports.compare import Comparison
from errata.reports.compare import compare as compared
from errata.reports.rundir import RunDirectory
from errata.reports.runs import load

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class RunFrames:
    """One run directory, its rows as data frames."""

    path: Path
    config: Mapping[str, Any]
    """The settings of the run, with the method's under ``method_settings``."""
    env: Mapping[str, Any]
    """Versions, device, dates and command line, and whether the run has finished."""
    metrics: DataFrame
    """One row for each logged step: ``step``, ``reward``, ``teacher/gap``, ..."""
    rollouts: DataFrame
    """One row for each recorded rollout: ``step``, ``prompt``, ``completion``, ``reward``, ``feedback``, the tokens' signals."""
    evals: DataFrame
    """One row for each evaluation: ``step``, ``avg@8``, ``avg@8_low``, ..."""


def load_run(path: str | Path) -> RunFrames:
    """The run directory at ``path``: settings, and metrics, rollouts and evaluations as pandas data frames.

    Raises ``ValueError`` if it is no run directory, or one of its files is damaged.
    """
    import pandas

    run = RunDirectory(path)
    config, env = run.config(), run.env()
    frames = (pandas.DataFrame(run.read(stream)) for stream in ("metrics", "rollouts", "eval"))
    return RunFrames(run.path, config, env, *frames)


def compare(
    recipe: str | Path | Mapping[str, Any],
    methods: Sequence[str],
    *,
    seeds: int = 3,
    jobs: int | None = None,
    tune: int = 0,
    target: float | None = None,
    output_dir: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Comparison:
    """Train several methods on the same data with several seeds each, as ``errata compare`` does, and compare them.

    ``errata.compare("recipes/demo.yaml", ["grpo", "distil"], seeds=2).rows["distil"]["avg@8"].mean``

    Args:
        recipe: a recipe's file, or its settings as a mapping.
        methods: names of methods, or labels of the recipe's ``compare``.
        seeds: runs of each method.
        jobs: runs at a time; as many as there are cores or GPUs unless given.
        tune: learning rates that each method tries first.
        target: avg@k whose reaching is timed.
        output_dir: the comparison's directory; ``runs/compare-NAME`` unless given.
        settings: what replaces the recipe's settings in every run.
    Returns:
        The table: ``rows[label][column]`` with mean and 95 % interval, and ``warnings`` about what is not comparable.
    Raises:
        ValueError: as the command; RuntimeError where a run failed, naming the comparison's directory with its logs.
    """
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(recipe, Mapping):
            file = Path(folder) / "recipe.yaml"
            file.write_text(yaml.safe_dump({**recipe, **(settings or {})}, allow_unicode=True), encoding="utf-8")
            where = Path(output_dir or Path("runs") / "compare")
            rest = []
        else:
            file = Path(recipe)
            where = Path(output_dir or Path("runs") / f"compare-{file.stem}")
            rest = [word for key, value in (settings or {}).items() for word in (f"--{key}", _word(value))]
        status = run_comparison(
            str(file), list(methods), seeds, jobs, tune, [*rest, "--output_dir", str(where)], target=target
        )
    if status:
        raise RuntimeError(f"a run of the comparison failed; its log is in {where / 'logs'}")
    return compared(load([where]), target=target)


def _word(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
