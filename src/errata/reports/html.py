"""``errata report``: one self-contained page for one or more runs, which opens offline. It shows curves and rollouts.

The page holds its numbers as JSON, and its scripts draw them. The scripts are our own and uPlot, a charting library of
50 kB (plotly's smallest bundle would take most of the size limit). Text that a model wrote is data in the page and is
shown as text. The content security policy lists the page's scripts by hash, so no other script can run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from errata.reports.code import differences
from errata.reports.compare import cell, compare, final, footnote, layout, number, row_name, warnings, worst_drop
from errata.reports.curves import bands, clocks, sections
from errata.reports.packing import attempts, embedded
from errata.reports.runs import PLAN, Run, Tuning, grouped, load, trials, unfinished

PAGE_LIMIT = 5_000_000
"""Bytes; rollouts are left out to stay below."""
_ROLLOUTS = 3_500_000
"""Bytes of rollouts at most."""
_STYLES = ("uplot.min.css", "report.css")
_SCRIPTS = ("uplot.min.js", "page.js", "charts.js", "signals.js", "sheet.js", "group.js", "attempts.js")
_LIVE = "live.js"


@dataclass(frozen=True)
class Script:
    """An inline script, and its hash for the content security policy."""

    text: Markup
    hash: str


@dataclass(frozen=True)
class Fact:
    """One of the numbers at the top of a single run's page."""

    name: str
    value: str
    notes: Sequence[str]


def write_report(runs: Sequence[str | Path], out: str | Path | None = None, *, target: float | None = None) -> Path:
    """Write the report of ``runs`` (run directories, or a comparison's directory) and return its path.

    Args:
        runs: at least one. Several are compared.
        out: the file; by default ``report.html`` in the directory of a single run or comparison, else here.
        target: as in :func:`errata.reports.compare.compare`.
    Raises:
        ValueError: a directory that is no run.
    """
    paths = [Path(path) for path in runs]
    html = read_page(paths, target=target)
    file = Path(out) if out is not None else (paths[0] if len(paths) == 1 else Path()) / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(html)
    return file


def read_page(paths: Sequence[str | Path], *, target: float | None = None, live: bool = False) -> bytes:
    """The page of ``paths``, as :func:`write_report` writes it."""
    first = Path(paths[0]) if len(paths) == 1 else None
    title = first.resolve().name if first is not None and (first / PLAN).is_file() else None
    return page(load(paths), title=title, target=target, missing=unfinished(paths), tuning=trials(paths), live=live)


def page(
    runs: Sequence[Run],
    *,
    title: str | None = None,
    target: float | None = None,
    missing: Sequence[str] = (),
    tuning: Sequence[Tuning] = (),
    live: bool = False,
) -> bytes:
    """The whole document, UTF-8, always smaller than ``PAGE_LIMIT`` bytes. It names the runs that are ``missing``.

    Args:
        tuning: the learning rates that a comparison tried.
        live: the page asks its address again and again, and follows a running training.
    """
    data: dict[str, Any] = {
        "sections": [asdict(section) for section in sections(runs)],
        "clocks": clocks(runs),
        "runs": [{"name": run.name, "divergence": _method_setting(run, "divergence")} for run in runs],
    }
    scripts = [_asset(name) for name in (*_SCRIPTS, *([_LIVE] if live else []))]
    code = differences(runs)
    code_size = sum(4 * len(line) + 40 for part in code for _, line in part.lines)
    spare = PAGE_LIMIT - 200_000 - len(embedded(data)) - sum(map(len, scripts)) - code_size
    data["attempts"], data["recorded"] = attempts(runs, max(min(_ROLLOUTS, spare), 0))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("errata.reports"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = environment.get_template("report.jinja").render(
        title=title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs"),
        subtitle=_subtitle(runs),
        warnings=[*([f"not finished and not shown: {', '.join(missing)}"] if missing else []), *warnings(runs)],
        bands=bands(runs),
        facts=_facts(runs[0]) if len(runs) == 1 else [],
        table=_table(runs, target) if len(runs) > 1 else None,
        tuning=tuning,
        k=runs[0].k,
        code=code,
        live=live,
        environments=[{"name": run.name, "facts": _environment(run.env)} for run in runs],
        styles=Markup("".join(map(_asset, _STYLES))),
        scripts=[_script(text) for text in scripts],
        data=Markup(embedded(data).decode("utf-8")),
        **_settings(runs),
    )
    return text.encode("utf-8", "backslashreplace")


def _asset(name: str) -> str:
    return (resources.files("errata.reports") / "assets" / name).read_text(encoding="utf-8")


def _script(text: str) -> Script:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return Script(Markup(text), f"'sha256-{digest}'")


def _subtitle(runs: Sequence[Run]) -> str:
    """``distil · on rulebook/new-rule · policy house``, as far as the runs agree."""
    parts = [", ".join(grouped(runs))] if len(grouped(runs)) <= 8 else [f"{len(grouped(runs))} settings"]
    for key, word in (("task", "on"), ("model", "policy")):
        values = {str(run.config[key]) for run in runs if run.config.get(key)}
        if len(values) == 1:
            parts.append(f"{word} {values.pop()}")
    return " · ".join(parts)


def _facts(run: Run) -> list[Fact]:
    """The most important numbers of a single run."""
    found = []
    for name in (f"avg@{run.k}", f"pass@{run.k}", "teacher_accuracy"):
        value, low, high = (final(run, f"{name}{end}") for end in ("", "_low", "_high"))
        if value is None:
            continue
        notes = []
        if low is not None and high is not None:
            notes.append(f"{number(low, 'share')} to {number(high, 'share')} (95 %)")
        first = run.evals[0]
        if first.get(name) is not None and len(run.evals) > 1:
            notes.append(f"from {_percent(first[name])} at step {first['step']}")
        found.append(Fact(name.replace("teacher_accuracy", "teacher's accuracy"), _percent(value), notes))
    drop = worst_drop(run, f"avg@{run.k}")
    if drop is not None and len(run.evals) > 1:
        found.append(Fact("worst drop", f"{number(drop, 'share')} points", ["below its best so far"]))
    goal = run.config.get("max_steps")
    steps = f"{run.steps:,} of {goal:,}" if isinstance(goal, int) and goal > 0 else f"{run.steps:,}"
    tokens = number(run.tokens_at(run.steps), "number")
    return [
        *found,
        Fact("optimizer steps", steps, [f"{number(run.seconds_at(run.steps), 'seconds')} of training"]),
        Fact("rollouts", f"{run.rollouts_per_step * run.steps:,}", [f"{tokens} tokens generated"]),
    ]


def _percent(share: float) -> str:
    return f"{number(share, 'share')} %"


def _table(runs: Sequence[Run], target: float | None) -> dict[str, Any]:
    comparison = compare(runs, target=target)
    shown, common = layout(comparison)
    rows = [
        {
            "name": row_name(comparison, label),
            "cells": [{"text": cell(e := row[c.name], c), "best": e is not None and e.best} for c in shown],
        }
        for label, row in comparison.rows.items()
    ]
    return {"common": common, "columns": [c.name for c in shown], "rows": rows, "footnote": footnote(comparison)}


def _settings(runs: Sequence[Run]) -> dict[str, Any]:
    """The settings in which the groups differ, one column per group, and the settings that they share."""
    groups = grouped(runs)
    flat = {label: _flat(group[0].config) for label, group in groups.items()}
    keys = {key: None for settings in flat.values() for key in settings}
    rows = [
        (key, [settings.get(key, "–") for settings in flat.values()]) for key in keys if key != "seed" or len(runs) == 1
    ]
    return {
        "labels": list(groups),
        "differing": [row for row in rows if len({*row[1]}) > 1],
        "settings": [(key, values[0]) for key, values in rows if len({*values}) == 1],
    }


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": item for name, item in _flat(value).items()}
        else:
            found[key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def _environment(env: Mapping[str, Any]) -> list[tuple[str, str]]:
    git, versions = env.get("git") or {}, env.get("versions") or {}
    facts = {
        "status": env.get("status"),
        "started": env.get("started"),
        "resumed": ", ".join(env.get("resumed") or []),
        "finished": env.get("finished"),
        "command": " ".join(env.get("argv") or []),
        "commit": f"{git['commit']}{' with changes' if git.get('changed') else ''}" if git.get("commit") else None,
        "device": env.get("device"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "python": env.get("python"),
        "platform": env.get("platform"),
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _method_setting(run: Run, key: str) -> Any:
    return (run.config.get("method_settings") or {}).get(key)
