"""A table of methods: what each reached, with intervals, after how many steps, and which differences may be chance.

An interval over seeds is Student's: mean ± t(0.975, n−1)·s/√n, for shares limited to [0, 1]; one seed has none. A method
*ties* with the best if the 95 % interval of their difference contains 0, over the runs that share a seed. With fewer
than two such runs only avg@k and pass@k are compared: there is a tie if the evaluations' intervals over problems overlap.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from errata.reports.runs import Run, grouped

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t at 0.975 for 1, 2, ... degrees of freedom. For more than 30 the last is used, which is a little too wide."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    low: float | None
    """End of the 95 % interval; ``None`` for a single value."""
    high: float | None
    n: int
    best: bool = False
    tie: bool = False
    """Not the best, but the difference from the best may be chance."""


@dataclass(frozen=True)
class Column:
    """One number of a run, and whether higher or lower is better."""

    name: str
    of: Callable[[Run], float | None]
    better: str = ""
    """``higher``, ``lower``, or empty if neither is better."""
    kind: str = "number"
    """``share``, ``number`` or ``seconds``."""


@dataclass(frozen=True)
class Comparison:
    """The numbers of several groups of runs."""

    k: int | None
    target: float | None
    columns: Sequence[Column]
    rows: Mapping[str, Mapping[str, Estimate | None]]
    """By label, then by column; ``None`` if unknown or not reached by every seed."""
    seeds: Mapping[str, int]
    warnings: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = {
            label: {name: None if e is None else asdict(e) for name, e in row.items()}
            for label, row in self.rows.items()
        }
        return {
            "k": self.k,
            "target": self.target,
            "seeds": dict(self.seeds),
            "rows": rows,
            "warnings": list(self.warnings),
        }


def interval(values: Sequence[float], *, share: bool = False) -> Estimate:
    """Mean and 95 % interval of ``values``. Raises ``ValueError`` if there are none."""
    if not values:
        raise ValueError("values: there are none to take the mean of")
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = T_975[min(n - 1, len(T_975)) - 1] * statistics.stdev(values) / math.sqrt(n)
    low, high = mean - half, mean + half
    return Estimate(mean, max(low, 0.0) if share else low, min(high, 1.0) if share else high, n)


def compare(runs: Sequence[Run], *, target: float | None = None) -> Comparison:
    """The comparison of ``runs``, one row per label.

    Args:
        runs: as :func:`errata.reports.runs.load` reads them.
        target: the avg@k for "steps to target"; by default half way from the untrained policy to the best method.
    Raises:
        ValueError: a target outside (0, 1].
    """
    if target is not None and not 0 < target <= 1:
        raise ValueError(f"target: {target} is not an avg@k; give a share above 0 and at most 1")
    groups = grouped(runs)
    ks = {run.k for run in runs if run.k is not None}
    k = ks.pop() if len(ks) == 1 else None
    if k is not None and target is None:
        target = _half_way(groups, k)
    columns = _columns(k, target)
    rows = {label: {c.name: _estimate(group, c) for c in columns} for label, group in groups.items()}
    for column in columns:
        if column.better and len(rows) > 1:
            _mark_best(rows, groups, column)
    return Comparison(k, target, columns, rows, {label: len(g) for label, g in groups.items()}, warnings(runs))


def final(run: Run, name: str) -> float | None:
    """A number of the last evaluation."""
    return run.evals[-1].get(name) if run.evals else None


def worst_drop(run: Run, name: str) -> float | None:
    """How far ``name`` at most fell below its best earlier value: 0 for a run that never fell."""
    values = [row[name] for row in run.evals if row.get(name) is not None]
    best, drop = -math.inf, 0.0
    for value in values:
        best = max(best, value)
        drop = max(drop, best - value)
    return drop if values else None


def reached(run: Run, name: str, target: float) -> int | None:
    """The step of the first evaluation with ``name`` at least ``target``; ``None`` if there is none."""
    return next((int(row["step"]) for row in run.evals if (row.get(name) or 0.0) >= target), None)


def table(comparison: Comparison) -> Table:
    """The comparison for the terminal. The best is bold with ``*``, ties have ``~``; what all rows share is in the title."""
    shown, common = layout(comparison)
    out = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        title_style="",
        caption_justify="left",
        caption_style="dim",
    )
    out.title = Text(", ".join(common)) if common else None
    out.caption = Text(footnote(comparison))
    out.add_column("", overflow="fold", min_width=8, max_width=30)
    for column in shown:
        # Headings in two lines: the whole fits a terminal of 80 columns.
        out.add_column("\n".join(column.name.rsplit(" ", 1)), justify="right", overflow="fold")
    for label, row in comparison.rows.items():
        cells = [Text(cell(e := row[c.name], c), "bold" if e is not None and e.best else "") for c in shown]
        out.add_row(Text(row_name(comparison, label)), *cells)
    return out


def row_name(comparison: Comparison, label: str) -> str:
    """The label, with its number of seeds if the rows differ in it."""
    n = comparison.seeds[label]
    return label if len({*comparison.seeds.values()}) == 1 else f"{label} ({n} seed{'s' * (n > 1)})"


def layout(comparison: Comparison) -> tuple[list[Column], list[str]]:
    """The columns to show, and as text what is the same in all rows: ``["120 steps", "3 seeds"]``."""
    seeds = {*comparison.seeds.values()}
    shown: list[Column] = []
    common = [f"{n} seed{'s' * (n > 1)}" for n in seeds if len(seeds) == 1]
    for column in comparison.columns:
        texts = {cell(row[column.name], column) for row in comparison.rows.values()}
        if texts == {"–"}:
            continue
        if not column.better and len(texts) == 1 and column.kind == "number":
            common.append(f"{texts.pop()} {column.name}")
        else:
            shown.append(column)
    return shown, common


def cell(estimate: Estimate | None, column: Column) -> str:
    """``85.0 ±4.9 *``: shares in per cent, the half-width of the interval, best or tie."""
    if estimate is None:
        return "–"
    text = number(estimate.mean, column.kind)
    if estimate.low is not None and estimate.high is not None and column.better:
        # A share's interval is limited to [0, 1]; its longer half is not.
        text += f" ±{number(max(estimate.high - estimate.mean, estimate.mean - estimate.low), column.kind)}"
    return text + (" *" if estimate.best else " ~" if estimate.tie else "")


def number(value: float, kind: str) -> str:
    """One value as text: ``85.0`` for a share, ``3.2m`` for seconds, ``1.2M`` for a number."""
    if kind == "share":
        return f"{100 * value:.1f}"
    if kind == "seconds":
        if abs(value) < 100:
            return f"{value:.0f}s"
        minutes, hours = value / 60, value / 3600
        return f"{minutes:.1f}m" if abs(minutes) < 100 else f"{hours:.1f}h"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.{0 if unit == 'k' else 1}f}{unit}"
    return f"{value:.0f}"


def footnote(comparison: Comparison) -> str:
    """A note that explains the table's signs and columns."""
    several = min(comparison.seeds.values()) > 1
    notes = [
        "Per cent at the last evaluation" + (", mean over seeds ± 95 % interval (Student's t)." if several else ".")
    ]
    if len(comparison.rows) > 1:
        rule = (
            "the 95 % interval of their difference over shared seeds holds 0"
            if several
            else "with a single seed, their 95 % intervals over problems overlap"
        )
        notes.append(f"* best, ~ tie with the best: {rule}.")
    if comparison.target is not None:
        notes.append(f"Target: avg@{comparison.k} of {100 * comparison.target:.1f} (–: not reached by every seed).")
    notes.append(
        "Worst drop: largest fall below its best so far. Time: training without evaluations. Tokens: generated."
    )
    return " ".join(notes)


def warnings(runs: Sequence[Run]) -> list[str]:
    """Reasons why the runs are not comparable, one sentence each."""
    found = []
    for key in ("task", "model", "eval_k", "eval_problems", "eval_split", "num_generations", "max_completion_length"):
        values = sorted({str(run.config.get(key)) for run in runs})
        if len(values) > 1:
            found.append(f"runs differ in {key}: {', '.join(values)}")
    budgets = {run.rollouts_per_step * run.steps for run in runs}
    if len(budgets) > 1:
        found.append(f"runs differ in rollouts: from {min(budgets):,} to {max(budgets):,}")
    found += teachers_differ({run.label: run.config.get("method_settings") or {} for run in runs})
    unfinished = [run.name for run in runs if run.env.get("status") != "finished"]
    if unfinished:
        found.append(f"not finished: {', '.join(unfinished)}")
    return found


def teachers_differ(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence where the teachers of the methods with these settings, by label, are not shown the same; else none."""
    shown = {label: text for label, own in settings.items() if (text := _shown(own)) is not None}
    if len({*shown.values()}) <= 1:
        return []
    said = "; ".join(f"{label}: {text}" for label, text in shown.items())
    return [f"teachers are not shown the same ({said}); method_args sources under `compare:` make them alike"]


def _shown(settings: Mapping[str, Any]) -> str | None:
    """What a method's teacher may be shown; ``None`` for one without a teacher."""
    if not settings.get("sources"):
        return None
    feedback = " with feedback" if settings.get("with_feedback") else ""
    return ", else ".join(settings["sources"]) + feedback


def _columns(k: int | None, target: float | None) -> list[Column]:
    columns = []
    if k is not None:
        avg = f"avg@{k}"
        columns += [
            Column(avg, lambda run: final(run, avg), "higher", "share"),
            Column(f"pass@{k}", lambda run: final(run, f"pass@{k}"), "higher", "share"),
            Column("worst drop", lambda run: worst_drop(run, avg), "lower", "share"),
        ]
        if target is not None:
            to = target
            columns += [
                Column("steps to target", lambda run: _to_target(run, avg, to), "lower"),
                Column("time to target", lambda run: _to_target(run, avg, to, seconds=True), "lower", "seconds"),
            ]
    return [
        *columns,
        Column("steps", lambda run: float(run.steps)),
        Column("rollouts", lambda run: float(run.rollouts_per_step * run.steps)),
        Column("tokens", lambda run: run.tokens_at(run.steps) or None),
        Column("time", lambda run: run.seconds_at(run.steps) or None, kind="seconds"),
    ]


def _to_target(run: Run, name: str, target: float, *, seconds: bool = False) -> float | None:
    step = reached(run, name, target)
    if step is None:
        return None
    return run.seconds_at(step) if seconds else float(step)


def _estimate(group: Sequence[Run], column: Column) -> Estimate | None:
    values = [column.of(run) for run in group]
    known = [v for v in values if v is not None]
    # Without the seeds that never reached the target, the mean would be too good.
    return interval(known, share=column.kind == "share") if known and len(known) == len(values) else None


def _mark_best(
    rows: dict[str, dict[str, Estimate | None]], groups: Mapping[str, Sequence[Run]], column: Column
) -> None:
    known = {label: e for label, row in rows.items() if (e := row[column.name]) is not None}
    if not known:
        return
    winner = (max if column.better == "higher" else min)(known, key=lambda label: known[label].mean)
    apart = {label: differ(groups[winner], groups[label], column) for label in known if label != winner}
    if apart and all(verdict is None for verdict in apart.values()):
        return
    equal = {label for label, e in known.items() if e.mean == known[winner].mean}
    for label, e in known.items():
        best = label in equal and (len(known) == 1 or len(equal) < len(known))
        tie = not best and (label in equal or apart[label] is False)
        rows[label][column.name] = replace(e, best=best, tie=tie)


def differ(first: Sequence[Run], second: Sequence[Run], column: Column) -> bool | None:
    """Whether two groups of runs differ by more than chance (the module's rule); ``None`` if that cannot be computed."""
    a, b = ({run.seed: column.of(run) for run in group} for group in (first, second))
    pairs = [(x, y) for seed in a if (x := a[seed]) is not None and (y := b.get(seed)) is not None]
    if len(pairs) > 1:
        mean = interval([x - y for x, y in pairs])
        return mean.low is not None and mean.high is not None and not mean.low <= 0 <= mean.high
    mine, other = _over_problems(first, column), _over_problems(second, column)
    return None if mine is None or other is None else mine[0] > other[1] or other[0] > mine[1]


def _over_problems(group: Sequence[Run], column: Column) -> tuple[float, float] | None:
    """The interval over problems that the evaluations hold; ``None`` for a number without one."""
    lows, highs = ([final(run, f"{column.name}_{end}") for run in group] for end in ("low", "high"))
    ends = [(low, high) for low, high in zip(lows, highs, strict=True) if low is not None and high is not None]
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


def _half_way(groups: Mapping[str, Sequence[Run]], k: int) -> float | None:
    name = f"avg@{k}"
    untrained = [run.evals[0][name] for g in groups.values() for run in g if run.evals and run.evals[0]["step"] == 0]
    ends = [[x for run in group if (x := final(run, name)) is not None] for group in groups.values()]
    best = max((statistics.fmean(values) for values in ends if values), default=0.0)
    start = statistics.fmean(untrained) if untrained else best
    return (start + best) / 2 if best > start else None
