"""Exact computation of the papers' claims: tabular policies, every rollout enumerated, training's own losses.

``errata theory`` prints one table of claims and writes ``theory.html``. ``errata theory --json`` prints the numbers.
There are six parts, one module each (docs/theory.md). Each module states its claims, their assumptions and the
computation. Importing this package does not import torch.
"""

from __future__ import annotations

import importlib
import json as _json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from errata.theory.claims import Part

PARTS = ("bandit", "monotone", "mdp", "regret", "pass_at_n", "estimators")

__all__ = ["PARTS", "run", "study"]


def study() -> list[Part]:
    """Compute all six parts."""
    return [importlib.import_module(f"errata.theory.{name}").study() for name in PARTS]


def run(json: bool = False, out: Path | None = None) -> int:
    """Print the claims as a table and write the page, or print the numbers as JSON.

    Args:
        json: print the numbers; then a page is written only if ``out`` is given.
        out: the page's file; ``theory.html`` unless given.
    Returns:
        0 if every claim has the expected result, else 1.
    """
    parts = study()
    if json:
        print(_json.dumps({key: value for part in parts for key, value in part.numbers.items()}, indent=2))
    else:
        _print(parts)
    if out is not None or not json:
        _write(parts, out or Path("theory.html"), quiet=json)
    return int(any(claim.holds != claim.expected for part in parts for claim in part.claims))


def _print(parts: list[Part]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="The papers' claims, computed exactly", show_lines=False, pad_edge=False)
    table.add_column("claim", ratio=5)
    table.add_column("assumption", ratio=4)
    table.add_column("")
    table.add_column("numbers", ratio=5)
    for number, part in enumerate(parts, 1):
        table.add_section()
        table.add_row(f"[bold]{number}. {part.title}[/bold]")
        for claim in part.claims:
            mark = "[green]holds[/green]" if claim.holds else "[red]fails[/red]"
            if claim.holds != claim.expected:
                mark += " [bold](unexpected)[/bold]"
            table.add_row(claim.statement, claim.assumption, mark, claim.numbers)
    Console().print(table)


def _write(parts: list[Part], out: Path, *, quiet: bool) -> None:
    try:
        from errata.theory.page import page

        document = page(parts)
    except ModuleNotFoundError as error:
        print(f"no page written: {error.name} is missing; pip install 'errata[report]'", file=sys.stderr)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(document, encoding="utf-8")
    if not quiet:
        print(f"wrote {out}")
