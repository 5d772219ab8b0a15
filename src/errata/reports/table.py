"""What a finished run prints in the terminal: numbers before and after, and a few rollouts with their feedback.

Everything returned is for ``rich.console.Console.print``, which omits colours if the output is no terminal.
Text that a model wrote is never read as markup, and its control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from errata.records import is_solved

MAX_CHARACTERS = 600
"""Longer texts lose their middle, so that three rollouts fit a screen."""

_NONE = "–"


def before_after(first: Mapping[str, Any], last: Mapping[str, Any], *, k: int | None = None) -> Table:
    """Two rows of ``eval.jsonl`` as columns, shares with their 95 % intervals, and the change.

    ``k`` selects the numbers to show, as in ``avg@8``; by default it is the last row's.
    """
    k = last["k"] if k is None else k
    shares = [f"avg@{k}", f"pass@{k}", f"maj@{k}", "teacher_accuracy", "format_rate"]
    where = " ".join(str(last[key]) for key in ("task", "split") if last.get(key))
    title = f"{where}, {last['n_problems']} problems" if where else f"{last['n_problems']} problems"
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("")
    for row in (first, last):
        table.add_column(f"step {row['step']}", justify="right")
    table.add_column("change", justify="right")
    for name in [*shares, "length"]:
        before, after = first.get(name), last.get(name)
        if before is None and after is None:
            continue
        percent = name in shares
        table.add_row(
            Text(name.replace("_", " ")),
            Text(_number(first, name, percent=percent)),
            Text(_number(last, name, percent=percent)),
            _change(before, after, percent=percent),
        )
    return table


def rollout_samples(rows: Iterable[Mapping[str, Any]], *, threshold: float = 1.0) -> RenderableType:
    """Rollouts one below the other: problem, prompt, completion, reward, feedback, and the teacher's context if known.

    Args:
        rows: as in ``rollouts.jsonl``: ``problem_id``, ``prompt``, ``completion``, ``reward``, ``kind``, ``feedback``,
            ``context``.
        threshold: the run's ``success_threshold``: rewards from there on are green, others red.
    """
    return Group(*(part for row in rows for part in (_attempt(row, threshold), Text())))


def _attempt(row: Mapping[str, Any], threshold: float) -> Table:
    reward = row.get("reward")
    reward_text = "not judged" if reward is None else f"reward {reward:g}"
    style = "bold green" if is_solved(reward, threshold) else "bold red"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text("problem"), Text(visible(str(row.get("problem_id", "")))))
    grid.add_row(Text("prompt"), Text(visible(shortened(prompt_text(row.get("prompt", ""))))))
    grid.add_row(Text("attempt"), Text(visible(shortened(row.get("completion", "")))))
    grid.add_row(Text("verdict"), Text(reward_text, style))
    if row.get("feedback"):
        grid.add_row(Text(visible(row.get("kind") or "feedback")), Text(visible(shortened(row["feedback"]))))
    context = row.get("context") or {}
    if context.get("kind"):
        grid.add_row(Text("teacher"), Text(visible(f"{context['kind']}: {context.get('why', '')}")))
    return grid


def prompt_text(prompt: Any) -> str:
    """The prompt's text, or the last message's text if it is a chat."""
    if isinstance(prompt, str):
        return prompt
    content = prompt[-1].get("content") or "" if prompt else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or f"[{part.get('type')}]" for part in content)


def shortened(text: str, limit: int = MAX_CHARACTERS) -> str:
    """``text``, without its middle if it is longer than ``limit``; a note says how many characters are missing."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[len(text) - half :]}"


def visible(text: str) -> str:
    """``text`` with control characters written out (``\\x1b``), because they could control the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _number(row: Mapping[str, Any], name: str, *, percent: bool) -> str:
    value = row.get(name)
    if value is None:
        return _NONE
    if not percent:
        return f"{value:.1f}"
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f} %{interval}"


def _change(before: float | None, after: float | None, *, percent: bool) -> Text:
    if before is None or after is None:
        return Text(_NONE)
    if not percent:
        return Text(f"{after - before:+.1f}")
    change = 100 * (after - before)
    return Text(f"{change:+.1f}", "green" if change > 0 else "red" if change < 0 else "")
