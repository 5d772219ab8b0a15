"""The code of runs: which commit each ran, what was not committed, and how the commits of two runs differ."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from errata.reports.rundir import RunDirectory
from errata.reports.runs import Run

LIMIT = 40_000
"""Characters kept of one difference."""
MOST = 5
"""Differences kept."""


@dataclass(frozen=True)
class Difference:
    """A difference as ``git diff`` prints it, line by line."""

    title: str
    lines: list[tuple[str, str]]
    """Each with its kind: ``plus``, ``minus``, ``place`` or empty."""


def differences(runs: Sequence[Run]) -> list[Difference]:
    """What the runs' code differs by: between their commits, where this repository has them, and what was not committed."""
    found = list(_between_commits(runs))
    patches: dict[str, list[str]] = {}
    for run in runs:
        if patch := RunDirectory(run.path).patch():
            patches.setdefault(patch, []).append(run.name)
    for patch, names in patches.items():
        whose = "" if len(names) == len(runs) else f" in {', '.join(names)}"
        found.append(Difference(f"Not committed when it ran{whose}", _lines(patch)))
    return found[:MOST]


def _between_commits(runs: Sequence[Run]) -> Iterator[Difference]:
    commits: dict[str, str] = {}
    for run in runs:
        if commit := (run.env.get("git") or {}).get("commit"):
            commits.setdefault(str(commit), run.name)
    first, *others = commits.items() if commits else [("", "")]
    for commit, name in others:
        title = f"Code of {first[1]} and {name}: commits {first[0][:9]} and {commit[:9]}"
        yield Difference(title, _lines(_diff(first[0], commit) or "not in this repository, or equal there"))


def _diff(old: str, new: str) -> str:
    if not all(word.isalnum() for word in (old, new)):
        return ""
    try:
        command = ["git", "diff", "--no-color", "--stat", "--patch", old, new, "--", "*.py", "*.yaml", "*.jinja"]
        return subprocess.run(command, capture_output=True, timeout=10, check=True).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.SubprocessError):
        return ""


def _lines(text: str) -> list[tuple[str, str]]:
    cut = text if len(text) <= LIMIT else f"{text[:LIMIT]}\n[cut: {len(text):,} characters in all]"
    kinds = {"+": "plus", "-": "minus", "@": "place", "d": "place"}
    return [(kinds.get(line[:1], ""), line) for line in cut.splitlines()]
