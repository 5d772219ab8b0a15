"""``errata init``: a recipe, a verifier with feedback and five rows, to start from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

FILES = ("my.yaml", "judge.py", "rows.jsonl")


def init(folder: Path) -> int:
    """Write the files and say what comes next.

    Raises ``ValueError`` where one is there already; then nothing is written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"init: {folder} is a file; name a folder")
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise ValueError(f"init: {folder} has a {there[0]} already; name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    starter = files("errata.commands") / "starter"
    for name in FILES:
        (folder / name).write_bytes((starter / name).read_bytes())
        print(f"wrote {folder / name}")
    recipe = folder / "my.yaml"
    print(f"next: errata tasks {recipe} --check, then errata train {recipe}")
    return 0
