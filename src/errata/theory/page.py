"""The self-contained page ``theory.html``: claims, pictures and tables. It opens offline, in light and dark mode.

Pictures are SVG by matplotlib; their text and lines have the page's text colour. ``python -m errata.theory.page
DIRECTORY`` writes each picture as a file of its own (docs/figures/theory).
"""

from __future__ import annotations

import html
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from errata.theory.claims import Claim, Part, Picture

_INK = "#010203"
"""A colour used for nothing else; it is replaced by ``currentColor``."""
_STYLE = """
:root { color-scheme: light dark; }
body { max-width: 66rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
body { background: Canvas; color: CanvasText; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; }
pre { white-space: pre-wrap; font: inherit; opacity: .85; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; }
th, td { border-bottom: 1px solid color-mix(in srgb, currentColor 18%, transparent); }
.holds { color: #149c72; } .fails { color: #e0562f; }
.numbers td, .numbers th { text-align: right; } .scroll { overflow-x: auto; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption, caption { text-align: left; font-size: .875rem; opacity: .8; }
"""


def page(parts: Sequence[Part]) -> str:
    """The whole document, HTML."""
    body = "".join(_section(n, part) for n, part in enumerate(parts, 1))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>errata: the papers' claims, computed exactly</title><style>{_STYLE}</style></head><body>"
        "<h1>The papers' claims, computed exactly</h1><p>Tabular policies, every rollout enumerated, float64, the "
        "loss functions of training. A claim that needs an assumption is followed by a case without it, in which it "
        "fails.</p>"
        f"{body}</body></html>\n"
    )


def _section(number: int, part: Part) -> str:
    claims = "".join(_claim(c) for c in part.claims)
    pictures = "".join(f"<figure>{svg(p)}<figcaption>{_text(p.caption)}</figcaption></figure>" for p in part.pictures)
    tables = "".join(
        f'<div class="scroll"><table class="numbers"><caption>{_text(t.caption)}</caption><tr>'
        + "".join(f"<th>{_text(h)}</th>" for h in t.header)
        + "</tr>"
        + "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in t.rows)
        + "</table></div>"
        for t in part.tables
    )
    about = part.about.split("\n", 1)[1].strip()
    return (
        f"<h2>{number}. {_text(part.title)}</h2><pre>{_text(about)}</pre>"
        '<div class="scroll"><table><tr><th>claim</th><th>assumption</th><th></th><th>numbers</th></tr>'
        f"{claims}</table></div>"
        f"{pictures}{tables}"
    )


def _claim(claim: Claim) -> str:
    result = "holds" if claim.holds else "fails"
    return (
        f'<tr><td>{_text(claim.statement)}</td><td>{_text(claim.assumption)}</td><td><b class="{result}">{result}</b></td>'
        f"<td>{_text(claim.numbers)}</td></tr>"
    )


def _text(text: str) -> str:
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", html.escape(text, quote=False))


def svg(picture: Picture, *, own_colours: bool = False) -> str:
    """The picture as an ``<svg>`` element; with ``own_colours`` it has a background and text colour, for an image file.

    Raises ``ModuleNotFoundError`` without matplotlib (``pip install 'errata[report]'``).
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)
    settings = {
        **ink,
        "svg.fonttype": "none",
        "svg.hashsalt": picture.name,
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": _INK,
        "grid.alpha": 0.12,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.markersize": 4,
    }
    with mpl.rc_context(settings):
        columns = min(len(picture.panels), 2) if len(picture.panels) != 3 else 3
        lines = -(-len(picture.panels) // columns)
        figure = Figure(figsize=((5.2 if columns < 3 else 4.0) * columns, 3.7 * lines), layout="constrained")
        FigureCanvasSVG(figure)
        for axes, draw in zip(figure.subplots(lines, columns, squeeze=False).flat, picture.panels, strict=True):
            draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = re.sub(r"\s*<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    drawing = drawing[drawing.index("<svg") :].replace(_INK, "currentColor")
    # Ids repeat between pictures on one page; clip paths refer to them.
    drawing = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{picture.name}-", drawing)
    if own_colours:
        style = "svg{color:#222;background:#fff}@media(prefers-color-scheme:dark){svg{color:#ddd;background:#161616}}"
        drawing = drawing.replace("<defs>", f"<style>{style}</style><defs>", 1)
    return drawing


def write_pictures(parts: Sequence[Part], directory: Path) -> None:
    """``directory/NAME.svg`` for every picture."""
    directory.mkdir(parents=True, exist_ok=True)
    for picture in (p for part in parts for p in part.pictures):
        (directory / f"{picture.name}.svg").write_text(svg(picture, own_colours=True), encoding="utf-8")


if __name__ == "__main__":
    from errata.theory import study

    write_pictures(study(), Path(sys.argv[1]))
