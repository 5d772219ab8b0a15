"""All settings as text: for ``errata train --help``, and as ``docs/settings.md``.

``python -m errata.recipe.help > docs/settings.md`` writes the page.
"""

from __future__ import annotations

import argparse
from enum import Enum
from typing import Any

from errata.recipe.groups import Setting, settings


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add every setting to a parser that prints a help or completes a command line; recipes are read by TRL's."""
    for title, group in settings().items():
        into = parser.add_argument_group(title)
        for s in group:
            text = f"{s.meaning} " if s.meaning else ""
            text += f"({_of_must(s.must_be)}default {plain(s.default)})"
            into.add_argument(f"--{s.name}", metavar="", help=text.replace("%", "%%"))


def _of_must(must_be: str) -> str:
    return f"{must_be}; " if must_be else ""


def plain(value: Any) -> str:
    """A default as it is written in a recipe."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def page() -> str:
    """``docs/settings.md``."""
    lines = [
        "# Settings",
        "",
        "Every key of a recipe. Each is also a flag of `errata train`, which stands over the recipe:",
        '`--learning_rate 1e-5`, `--method_args.credit mean`, `--task_args "{feedback: trace}"`. `errata methods NAME` lists the',
        "settings of a method (`method_args`). A recipe may have three keys more: `on_gpu`, settings that replace others where",
        "there is a GPU; `env`, environment variables; `compare`, what differs by method in `errata compare`.",
        "",
        "errata's own settings are explained here. The others are TRL's and transformers'; `errata train --help` prints what",
        "those say.",
        "",
        "This page is written by `python -m errata.recipe.help`; a test compares it.",
    ]
    for title, group in settings().items():
        lines += ["", f"## {title}", "", "| setting | default | must be | meaning |", "|---|---|---|---|"]
        lines += [_row(s) for s in group]
    return "\n".join(lines) + "\n"


def _row(s: Setting) -> str:
    meaning = s.meaning if s.origin == "errata" else f"see {s.origin}"
    cells = (f"`{s.name}`", f"`{plain(s.default)}`", s.must_be or "–", meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
