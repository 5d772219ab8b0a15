"""Rows of one's own: a file, a folder, a saved data set, one of the hub, or TRL's mixture of several."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from pyarrow import parquet
from trl import DatasetMixtureConfig, get_dataset

from errata.recipe.models import one_line
from errata.tasks.rows import Row, json_lines
from errata.validate import nearest


def read_rows(name: str, split: str, *, config: str | None = None, argument: str = "dataset_name") -> Dataset:
    """The rows of a split of ``name``.

    Args:
        name: a file (``.jsonl``, ``.json``, ``.parquet``, ``.csv``), which is its own only split; a folder with one of these for
            each split; a folder that ``save_to_disk`` wrote; else a set of the hub. What exists here is never looked for on
            the hub.
        split: ``train``, ``test``, ...
        config: the configuration of a set of the hub.
        argument: the setting that holds ``name``, for errors.
    Raises:
        ValueError: in one line, for a missing file or split, and a file that cannot be read, with its line where it has lines.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if split != "train" and argument == "dataset_name":
            raise ValueError(
                f"dataset_name: {name} is one file, without a split {split!r}; name its rows with eval_dataset_name, give a "
                "folder with train.jsonl and test.jsonl, set eval_strategy: no, or evaluate with --split train"
            )
        return _of_file(path, argument)
    if path.is_dir():
        for end in _READERS:
            if (path / f"{split}{end}").is_file():
                return _of_file(path / f"{split}{end}", argument)
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return _of_split(load_from_disk(str(path)), split, f"{argument}: {name}")
    elif path.suffix in _READERS or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(
            f"{argument}: no file or folder {name!r}; give an existing one, or a set of the hub (owner/name)"
        )
    try:
        return load_dataset(name, name=config, split=split)
    except Exception as error:  # offline, gone, gated, no such split: each library layer has its own class for it
        raise ValueError(f"{argument}: cannot load {name} ({split}): {one_line(error)}") from error


def read_mixture(mixture: DatasetMixtureConfig, split: str) -> Dataset:
    """A split of TRL's ``datasets``: several sets, one after the other. Raises ``ValueError`` in one line."""
    try:
        found = get_dataset(mixture)
    except Exception as error:
        raise ValueError(f"datasets: cannot load them: {one_line(error)}") from error
    return _of_split(found, split, "datasets")


def mapped(rows: Dataset, columns: Mapping[str, str] | None, *, chat: bool = False) -> Dataset:
    """The rows with columns under the names that a run reads.

    Args:
        columns: new name → name in the data: ``{"prompt": "question", "reference": "solution"}``.
        chat: a prompt that is a text becomes a user's message.
    Raises:
        ValueError: a column that is not there, with the nearest that is, or a new name that another column has.
    """
    for new, old in (columns or {}).items():
        if old not in rows.column_names:
            raise ValueError(
                f"columns: {new}: the rows have no column {old!r}{nearest(old, rows.column_names)}; they have "
                f"{', '.join(rows.column_names)}"
            )
        if new != old and new in rows.column_names:
            raise ValueError(f"columns: {new}: the rows have a column of that name, too; rename one in the data")
    rows = rows.rename_columns({old: new for new, old in (columns or {}).items() if new != old})
    if chat and "prompt" in rows.column_names and any(isinstance(prompt, str) for prompt in rows["prompt"]):
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in rows["prompt"]]
        rows = rows.remove_columns("prompt").add_column("prompt", prompts)
    return rows


def _of_file(path: Path, argument: str) -> Dataset:
    try:
        return _READERS[path.suffix](path)
    except KeyError:
        raise ValueError(f"{argument}: {path}: of a kind that is not read; give {', '.join(_READERS)}") from None
    except (pyarrow.ArrowException, OSError, TypeError) as error:
        raise ValueError(f"{argument}: cannot read {path}: {one_line(error)}") from error
    except ValueError as error:
        raise ValueError(f"{argument}: {one_line(error)}") from error


def _of_json(path: Path) -> Dataset:
    with path.open("rb") as file:
        is_list = file.read(64).lstrip().startswith(b"[")
    if is_list:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: its list must hold one object for each row")
    else:
        rows = [_fields(row) for row in json_lines(path)]
    return _table(rows, path)


def _fields(row: Row | Exception) -> Mapping[str, Any]:
    if isinstance(row, Exception):
        raise row
    return row.fields


def _of_csv(path: Path) -> Dataset:
    import pandas

    # Every value is a text, as in the file: an answer 007 is not 7.
    return Dataset.from_pandas(pandas.read_csv(path, dtype=str, keep_default_na=False), preserve_index=False)


def _table(rows: Iterable[Mapping[str, Any]], path: Path) -> Dataset:
    found = list(rows)
    names = dict.fromkeys(name for row in found for name in row)
    columns = {name: [row.get(name) for row in found] for name in names}
    for name, values in columns.items():
        try:
            pyarrow.array(values)
        except pyarrow.ArrowException as error:
            raise ValueError(
                f"{path}: column {name!r} has values of different types ({one_line(error)}); make them one"
            ) from error
    return Dataset.from_dict(columns)


_READERS: dict[str, Callable[[Path], Dataset]] = {
    ".jsonl": _of_json,
    ".json": _of_json,
    ".parquet": lambda path: Dataset(parquet.read_table(path)),
    ".csv": _of_csv,
}


def _of_split(found: Any, split: str, where: str) -> Dataset:
    if isinstance(found, DatasetDict):
        if split not in found:
            raise ValueError(f"{where} has no split {split!r}; it has {', '.join(found)}")
        return found[split]
    if split != "train":
        raise ValueError(
            f"{where} has no splits, so no {split!r}; name rows with eval_dataset_name, or set eval_strategy: no"
        )
    return found
