"""The curves of a report: which metrics are drawn together, and means and bands over seeds.

Evaluations are drawn point by point. Training metrics are noisy, so the running mean over about a twentieth of the run is
drawn (``smoothed``), with the raw values behind it if there is a single run. :func:`bands` explains the bands.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from errata.reports.compare import interval
from errata.reports.runs import Run, grouped

MAX_POINTS = 240
"""Per curve: more than a chart has columns to show."""
_SMOOTHING = 20


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    colour: int
    """Which of the page's line colours, from 0."""
    clock: str
    """The label whose time and tokens at these steps :func:`clocks` gives."""
    x: list[int]
    """Optimizer steps."""
    y: list[float | None]
    low: list[float | None] | None = None
    high: list[float | None] | None = None
    raw: list[float | None] | None = None
    """Before smoothing."""
    seeds: list[tuple[str, list[float | None]]] = field(default_factory=list)
    """Of several runs: each one's name and its values before smoothing."""


@dataclass(frozen=True)
class Panel:
    """One chart."""

    title: str
    unit: str
    """``share`` (drawn in per cent), ``nats``, ``tokens``, ``s`` or empty."""
    about: str
    series: list[Series]
    smoothed: int = 1
    """Steps of the running mean."""


@dataclass(frozen=True)
class Section:
    """Charts under one heading."""

    title: str
    panels: list[Panel] = field(default_factory=list)
    open: bool = True


@dataclass(frozen=True)
class _Chart:
    title: str
    keys: Mapping[str, str]
    """Metric to the name of its line."""
    unit: str = ""
    about: str = ""
    smooth: bool = True


def _one(title: str, key: str, unit: str = "", about: str = "", *, smooth: bool = True) -> _Chart:
    return _Chart(title, {key: title}, unit, about, smooth)


_TRAINING = (
    _one("Reward", "reward", about="Mean over the step's rollouts."),
    _Chart(
        "Entropy",
        {"entropy": "student", "teacher/entropy": "teacher"},
        "nats",
        "Mean over tokens. At 0 the student no longer explores.",
    ),
    _one("Length", "completions/mean_length", "tokens", "Mean tokens of a rollout."),
    _one(
        "Gap to the teacher",
        "teacher/gap",
        "nats",
        "Teacher's less student's log-probability of the sampled token: 0 when both agree.",
    ),
    _one(
        "Disagreement",
        "teacher/divergence",
        "nats",
        "The method's divergence, mean over the tokens that have a teacher.",
    ),
    _Chart(
        "Cost and credit",
        {"local_cost": "local cost", "future_credit": "future credit"},
        "nats",
        "The cost of a token, and the mean future cost after it.",
    ),
    _one("Loss", "loss", about="Sum of the two streams; it need not fall."),
    _one("Gradient norm", "grad_norm", about="Before clipping."),
)
_DECISIONS = (
    _Chart(
        "Context of the teacher",
        {f"context/{kind}": kind for kind in ("sibling", "buffer", "feedback", "reference", "none")},
        "share",
        "Share of rollouts.",
    ),
    _Chart(
        "Groups with equal rewards",
        {"groups/solve_none": "none solved", "groups/solve_all": "all solved"},
        "share",
        "The reward gives no gradient on these.",
    ),
    _Chart(
        "Difficulty",
        {"routing/hard": "hard", "routing/medium": "medium", "routing/easy": "easy"},
        "share",
        "Mean gate of the step's problems.",
    ),
    _Chart(
        "Routing",
        {"routing/reinforced": "reinforced", "routing/distilled": "distilled"},
        "share",
        "Rollouts with weight in the policy gradient, in the distillation, or in neither.",
    ),
    _Chart(
        "Weight of the streams",
        {"routing/weight_rl": "reward", "routing/weight_sd": "distillation"},
        "",
        "Mean weight per token.",
    ),
    _Chart(
        "Rhythm",
        {"rhythm/open": "gate open", "rhythm/bonus": "bonus"},
        "share",
        "Share of the tokens of solved rollouts.",
    ),
    _Chart(
        "Success buffer",
        {"buffer/texts": "texts", "buffer/problems": "problems"},
        about="Stored successes.",
        smooth=False,
    ),
    _Chart(
        "Draws from the buffer",
        {"buffer/hits": "hits", "buffer/misses": "misses"},
        about="Since the start.",
        smooth=False,
    ),
    _one("Curriculum", "curriculum/stage", about="Stage 1 distils every rollout, stage 2 routes.", smooth=False),
    _one("Problems seen", "ledger/problems", about="Problems with a pass rate in the ledger.", smooth=False),
    _Chart(
        "Not used",
        {"rollouts/unjudged": "not judged", "context/cut": "context cut", "context/dropped": "context dropped"},
        "share",
        "Rollouts on which the verifier failed, and contexts that did not fit.",
    ),
)


def sections(runs: Sequence[Run]) -> list[Section]:
    """All curves of ``runs``: evaluations, training, decisions of the method, and every further metric, folded."""
    groups = grouped(runs)
    found = [Section("Evaluation", list(_panels(groups, _evaluation(runs), "evals")))]
    drawn: set[str] = set()
    known: tuple[tuple[str, Sequence[_Chart]], ...] = (("Training", _TRAINING), ("Decisions of the method", _DECISIONS))
    for title, charts in known:
        found.append(Section(title, list(_panels(groups, charts, "metrics"))))
        drawn |= {key for chart in charts for key in chart.keys}
    further = sorted({key for run in runs for row in run.metrics for key, v in row.items() if _number(v)} - drawn)
    charts = [_one(key, key) for key in further if key not in ("step", "epoch")]
    found.append(Section("Further metrics", list(_panels(groups, charts, "metrics")), open=False))
    return [section for section in found if section.panels]


def bands(runs: Sequence[Run]) -> str:
    """What the band around a line shows, as a sentence."""
    sizes = {len(group) for group in grouped(runs).values()}
    meaning = {
        1: "of a single run: the evaluation's 95 % interval over problems",
        2: "of two seeds: from one to the other",
        3: "of several seeds: the 95 % interval of their mean (Student's t)",
    }
    return "Bands " + "; ".join(meaning[n] for n in sorted({min(size, 3) for size in sizes})) + "."


def clocks(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """By label: some ``step``s, and up to each the mean generated ``tokens`` and ``minutes`` of training."""
    found = {}
    for label, group in grouped(runs).items():
        last = max(run.steps for run in group)
        steps = sorted({round(i * last / MAX_POINTS) for i in range(MAX_POINTS + 1)})
        found[label] = {
            "step": [float(s) for s in steps],
            "tokens": [_short(statistics.fmean(run.tokens_at(s) for run in group), 6) for s in steps],
            "minutes": [_short(statistics.fmean(run.seconds_at(s) for run in group) / 60, 6) for s in steps],
        }
    return found


def _evaluation(runs: Sequence[Run]) -> list[_Chart]:
    ks = sorted({run.k for run in runs if run.k is not None})
    charts = [_one(f"avg@{k}", f"avg@{k}", "share", "Chance that one completion is solved.", smooth=False) for k in ks]
    charts += [
        _one(f"pass@{k}", f"pass@{k}", "share", f"Chance that at least one of {k} completions is solved.", smooth=False)
        for k in ks
        if k > 1
    ]
    charts += [
        _one(f"maj@{k}", f"maj@{k}", "share", "Chance that the most frequent answer is right.", smooth=False)
        for k in ks
    ]
    return [
        *charts,
        _one(
            "Teacher's accuracy",
            "teacher_accuracy",
            "share",
            "Accuracy of the teacher with its contexts. When it falls, the student's falls too.",
            smooth=False,
        ),
        _one("Format", "format_rate", "share", "Share of well-formed completions.", smooth=False),
        _one("Length in evaluation", "length", "tokens", "Mean tokens of a rollout.", smooth=False),
    ]


def _panels(groups: Mapping[str, Sequence[Run]], charts: Iterable[_Chart], stream: str) -> Iterator[Panel]:
    """One panel per chart. With several groups, one per metric, so that a line's colour always means its group."""
    for chart in charts:
        if len(groups) == 1:
            (label, group), keys = next(iter(groups.items())), chart.keys.items()
            yield from _panel(
                chart, chart.title, [(name, i, label, group, key) for i, (key, name) in enumerate(keys)], stream
            )
            continue
        for key, name in chart.keys.items():
            title = chart.title if len(chart.keys) == 1 else f"{chart.title}: {name}"
            lines = [(label, i, label, group, key) for i, (label, group) in enumerate(groups.items())]
            yield from _panel(chart, title, lines, stream)


def _panel(
    chart: _Chart, title: str, lines: Sequence[tuple[str, int, str, Sequence[Run], str]], stream: str
) -> Iterator[Panel]:
    longest = max((len(getattr(run, stream)) for _, _, _, group, _ in lines for run in group), default=0)
    window = (longest // _SMOOTHING | 1) if chart.smooth else 1  # odd, to lie around its middle
    series = [
        s
        for name, i, label, group, key in lines
        if (s := _series(name, i, label, group, key, stream, window, chart.unit == "share"))
    ]
    # A share that is 0 throughout is left out, unless it is the only line.
    shown = [s for s in series if any(s.y)] if chart.unit == "share" and len(chart.keys) > 1 else series
    if shown:
        yield Panel(title, chart.unit, chart.about, shown, window)


def _series(
    name: str, colour: int, label: str, group: Sequence[Run], key: str, stream: str, window: int, share: bool
) -> Series | None:
    """The mean over the seeds of a group, at the steps all of them have."""
    rows = [{int(row["step"]): row for row in getattr(run, stream) if _number(row.get(key))} for run in group]
    steps = sorted(set.intersection(*map(set, rows)))
    if not steps:
        return None
    curves = [[float(row[step][key]) for step in steps] for row in rows]
    smooth = [_running_mean(curve, window) for curve in curves]
    if len(group) > 1:
        at_steps = list(zip(*smooth, strict=True))
        mean = [statistics.fmean(values) for values in at_steps]
        if len(group) == 2:  # Student's interval of two values is twelve times their spread, too wide for a chart
            low, high = [min(v) for v in at_steps], [max(v) for v in at_steps]
        else:
            found = [interval(values, share=share) for values in at_steps]
            low, high = [e.low for e in found], [e.high for e in found]
        x, y, low, high, *thin = _thinned(steps, mean, low, high, *curves)
        names = [f"seed {run.seed}" if run.seed is not None else run.name for run in group]
        return Series(name, colour, label, x, y, low, high, seeds=list(zip(names, thin, strict=True)))
    ends = [[rows[0][step].get(f"{key}_{end}") for step in steps] for end in ("low", "high")]
    lower, upper = ends if any(v is not None for v in ends[0]) else (None, None)
    return Series(name, colour, label, *_thinned(steps, smooth[0], lower, upper, curves[0] if window > 1 else None))


def _thinned(steps: list[int], *curves: Sequence[float | None] | None) -> list[Any]:
    """At most ``MAX_POINTS`` of the points, evenly, first and last always."""
    n = len(steps)
    keep = sorted({round(i * (n - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)}) if n > MAX_POINTS else range(n)
    thin = [None if c is None else [None if (v := c[i]) is None else _short(v) for i in keep] for c in curves]
    return [[steps[i] for i in keep], *thin]


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over ``window`` values (odd) around each; fewer at the ends."""
    half = window // 2
    return [statistics.fmean(values[max(i - half, 0) : i + half + 1]) for i in range(len(values))]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")
