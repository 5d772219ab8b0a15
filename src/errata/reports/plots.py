"""The report's curves as image files: one SVG and one PNG each, drawn by matplotlib (``pip install 'errata[report]'``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.reports.curves import Panel, sections
from errata.reports.runs import load

COLOURS = ("#c2410c", "#1d6fb8", "#18855f", "#8a4fc4", "#b07d0a", "#c02f72", "#4b5563", "#0e8a94")
"""The report's line colours, on white."""
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "errata",  # the same run gives the same file
}


def write_plots(runs: Sequence[str | Path], folder: str | Path) -> list[Path]:
    """Write the report's curves, except the folded ones, into ``folder`` and return the files.

    Raises:
        ValueError: a directory that is no run, or matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots: need matplotlib; pip install 'errata[report]'") from error
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--plots: {folder} is a file; name a directory")
    panels = [panel for section in sections(load(runs)) if section.open for panel in section.panels]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for panel in panels:
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(3.4, 2.3), layout="constrained")
            _draw(figure.add_subplot(), panel)
            for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 300})):
                file = folder / f"{slug(panel.title)}.{kind}"
                figure.savefig(file, **options)
                written.append(file)
    return written


def slug(title: str) -> str:
    """A title as a file's name: ``avg@8``, ``entropy-student``."""
    return re.sub(r"[^a-z0-9@]+", "-", title.lower()).strip("-")


def _draw(axes: Any, panel: Panel) -> None:
    scale = 100 if panel.unit == "share" else 1
    for series in panel.series:
        colour = COLOURS[series.colour % len(COLOURS)]

        def line(values: list[float | None]) -> list[float]:
            return [float("nan") if v is None else scale * v for v in values]

        if series.low is not None and series.high is not None:
            axes.fill_between(series.x, line(series.low), line(series.high), color=colour, alpha=0.18, linewidth=0)
        if series.raw is not None:
            axes.plot(series.x, line(series.raw), color=colour, alpha=0.3, linewidth=0.6)
        few = {"marker": "o", "markersize": 2.5} if len(series.x) <= 30 else {}
        axes.plot(series.x, line(series.y), color=colour, linewidth=1.4, label=series.name, **few)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(
        f"{panel.title} (%)" if scale == 100 else f"{panel.title} ({panel.unit})" if panel.unit else panel.title
    )
    if len(panel.series) > 1:
        axes.legend()
