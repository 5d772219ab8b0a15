"""``errata methods``: a list of the methods and presets, or every setting of one.

Names, defaults and explanations are read from the methods' classes.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

UNSTYLED_WIDTH = 120
"""Width in columns if the output is no terminal."""


def overview() -> str:
    """All methods with idea, needs, defaults and paper, then the presets with the settings that each changes."""
    from errata import methods

    table = Table(box=SIMPLE_HEAD, title="Methods", title_justify="left", title_style="bold")
    for column in ("name", "idea", "needs", "by default", "paper"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    presets = Table(box=SIMPLE_HEAD, title="Presets", title_justify="left", title_style="bold")
    for column in ("name", "method", "changes", "source"):
        presets.add_column(column, overflow="fold", no_wrap=column in ("name", "method"))
    seen: set[type] = set()
    for name, preset in methods.PRESETS.items():
        kind = preset.method
        if kind in seen:
            _add(presets, name, kind.__name__, _in_words(preset.settings), preset.source)
        else:
            _add(table, name, kind.idea, kind.needs, _defaults_in_words(methods.get(name)), kind.paper)
        seen.add(kind)
    hint = Text("One method in full: errata methods NAME. One of yours: method: path/to/file.py:MyMethod", "dim")
    return _as_text(Group(table, presets, hint))


def describe(name: str) -> str:
    """All settings of one method or preset: value, the method's default if it differs, and meaning.

    Raises ``ValueError`` for an unknown name, with the nearest known one.
    """
    from errata import methods

    method = methods.get(name)
    kind = type(method)
    preset = methods.PRESETS.get(name)
    defaults = kind().settings()
    meanings = _meanings(kind)

    head = Table.grid(padding=(0, 2))
    head.add_column(style="dim")
    head.add_column(overflow="fold")
    facts = {
        "name": name,
        "idea": kind.idea,
        "needs": kind.needs,
        "source": (preset.source if preset else "") or kind.paper,
    }
    if preset is not None and preset.trainer:
        facts["recipe"] = f"the source also sets, and a recipe has to say: {_in_words(preset.trainer)}"
    if preset is not None and preset.evaluation:
        facts["evaluated"] = _in_words(preset.evaluation)
    if preset is not None and preset.setup:
        facts["setup"] = preset.setup
    for fact, text in facts.items():
        head.add_row(Text(fact), Text(text, "bold" if fact == "name" else ""))

    table = Table(box=SIMPLE_HEAD, title="method_args", title_justify="left", title_style="bold")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold", max_width=28)
    table.add_column(f"{kind.__name__}'s default", overflow="fold", max_width=28)
    table.add_column("meaning", overflow="fold", style="dim")
    for key, value in method.settings().items():
        differs = value != defaults[key]
        table.add_row(
            Text(key, "bold" if differs else ""),
            Text(_plain(value), "bold" if differs else ""),
            Text(_plain(defaults[key]) if differs else ""),
            Text(meanings.get(key, "")),
        )
    return _as_text(Group(head, Text(), table))


def _defaults_in_words(method: Any) -> str:
    settings = method.settings()
    if not method.uses_teacher:
        return "no teacher"
    teacher = f"ema {settings['teacher_rate']:g}" if settings["teacher"] == "ema" else settings["teacher"]
    own = [
        f.name
        for f in fields(method)
        if f.name in ("credit", "cost", "baseline", "routing", "warmup_steps", "token_clip", "entry_clip")
    ]
    parts = [f"{settings['divergence']}, {teacher} teacher shown {' > '.join(settings['sources'])}"]
    parts += [f"{key} {_plain(settings[key])}" for key in own if settings[key] is not None]
    return "; ".join(parts)


def _add(table: Table, name: str, *cells: str) -> None:
    # Cells are texts of their own: rich would take the brackets of a plain string for markup.
    table.add_row(Text(name, "bold"), *map(Text, cells))


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {_plain(value)}" for key, value in settings.items()) or "the method's defaults"


def _plain(value: Any) -> str:
    """A setting's value as it is written in a recipe."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{_in_words(value) if value else ''}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _meanings(kind: type) -> dict[str, str]:
    """The docstrings below a dataclass's fields, including inherited fields."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError):  # a class without a source file, as typed into a notebook
            continue
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                found[statement.target.id] = " ".join(str(following.value.value).replace("``", "").split())
    return found


def _as_text(shown: RenderableType) -> str:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=UNSTYLED_WIDTH)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")
