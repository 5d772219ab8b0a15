"""Reading a task's rows. A row that cannot be used raises an error with its file, line and field, and what to change."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "BadRowError",
    "Row",
    "converted",
    "find_file",
    "from_hub",
    "json_lines",
    "question_of",
    "rows_beside",
    "to_dataset",
]

logger = logging.getLogger(__name__)


class UnreachableError(ConnectionError, ValueError):
    """A set that cannot be fetched. The message ends in what to do instead."""


class BadRowError(ValueError):
    """A row that cannot be used. The message names the file, the line, the field and what to change."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read, and its place: ``Row({"idx": 7}, "physics/train.json, line 3")``."""

    fields: Mapping[str, Any]
    where: str
    set_name: str = ""
    """The set that it is from, for a task that reads several."""

    def bad(self, problem: str) -> BadRowError:
        """An error about this row."""
        return BadRowError(f"{self.where}: {problem}")

    def text(self, *names: str) -> str:
        """The first of these fields that is present and not blank, as text. Numbers become text.

        Raises ``BadRowError`` if none is, or one is neither text nor a number.
        """
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return str(value)
            if value is None:
                continue
            if not isinstance(value, str):
                raise self.bad(f"field {name!r} must be text, not {type(value).__name__}")
            if value.strip():
                return value
        wanted = " or ".join(repr(name) for name in names)
        raise self.bad(f"no field {wanted}; the row has {', '.join(map(repr, self.fields)) or 'none'}")

    def optional(self, name: str) -> str:
        """The field as text; empty if it is missing, null or blank. Raises ``BadRowError`` if it is no text."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise self.bad(f"field {name!r} must be text, not {type(value).__name__}")
        return value if value and value.strip() else ""


Convert = Callable[[Row], dict[str, Any]]
"""A task's function from a row as it was read to its columns; it raises ``BadRowError`` for one that cannot be used."""


def find_file(path: str | Path, split: str, *, folders: Sequence[str] = ()) -> Path:
    """The file of a split: ``path`` itself if it is a file, else ``{split}.json[l]`` in it or one of its ``folders``.

    Raises ``ValueError`` listing where it looked.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return root
    if not root.is_dir():
        raise ValueError(f"path: no folder {str(root)!r}")
    places = [root / folder / f"{split}{end}" for folder in ("", *folders) for end in (".json", ".jsonl")]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(p.relative_to(root)) for p in places)
    raise ValueError(f"path: {str(root)!r} holds no rows of the split {split!r}; looked for {looked}")


def json_lines(file: Path) -> Iterator[Row | BadRowError]:
    """The objects of a JSON-lines file. For a line that is not a JSON object, an error that says what is wrong."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            if not line.strip():
                continue
            try:
                fields = json.loads(line.strip())
            except json.JSONDecodeError as error:
                yield BadRowError(f"{where}: broken JSON at column {error.colno}: {error.msg}; write one object a line")
                continue
            except UnicodeDecodeError:
                yield BadRowError(f"{where}: not UTF-8 text; save the file as UTF-8")
                continue
            except (
                RecursionError,
                ValueError,
            ) as error:  # brackets within brackets, or a number of thousands of digits
                wrong = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                yield BadRowError(f"{where}: not usable JSON: {wrong}; write one object a line")
                continue
            if isinstance(fields, dict):
                yield Row(fields, where)
            else:
                yield BadRowError(f"{where}: a JSON {type(fields).__name__}; write one object a line")


def rows_beside(train_file: Path) -> Iterator[Row | BadRowError]:
    """The rows of the test file that lies beside a training file; none if there is no such file."""
    test_file = train_file.with_name(train_file.name.replace("train", "test"))
    if test_file != train_file and test_file.is_file():
        yield from json_lines(test_file)


def converted(rows: Iterable[Row | BadRowError], convert: Convert) -> Iterator[dict[str, Any]]:
    """Test rows in the schema of tasks, to compare training rows with. Those that cannot be used are left out here, because
    loading the test split itself reports them."""
    for row in rows:
        try:
            if isinstance(row, Row):
                yield convert(row)
        except BadRowError:
            continue


def from_hub(hub_id: str, *, split: str, task: str, fix: str, **arguments: Any) -> Iterator[Row | BadRowError]:
    """The rows of a set on the Hugging Face hub.

    Raises ``UnreachableError`` in one line that ends in ``fix`` if it cannot be loaded: the hub cannot be reached, the set is
    gated or gone, or has no such split.
    """
    import datasets

    source = arguments.get("data_files", hub_id)
    try:
        rows = datasets.load_dataset(hub_id, split=split, **arguments)
    except Exception as error:  # offline, gone, moved, gated: each library layer has its own class for it
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        gated = "gated" in f"{type(error).__name__} {error}".lower()
        login = "accept its terms on its page and log in with `hf auth login`, or " if gated else ""
        raise UnreachableError(f"{task}: could not fetch {source!r} from the hub ({reason}); {login}{fix}") from error
    return (Row(fields, f"{source}, row {index}") for index, fields in enumerate(rows))


def to_dataset(
    rows: Iterable[Row | BadRowError],
    convert: Convert,
    *,
    source: str,
    strict: bool = True,
    held_out: Iterable[Mapping[str, Any]] = (),
) -> Dataset:
    """Rows, converted to the schema of tasks.

    Args:
        rows: as read.
        convert: one row's columns; it raises ``BadRowError`` for a row that cannot be used.
        source: named in messages.
        strict: ``False`` leaves bad rows out, and logs how many. A row with a repeated ``problem_id`` is one.
        held_out: test rows in the schema. Training rows with the same question are left out, and a warning counts them.
    Raises:
        BadRowError: a bad row, if ``strict``.
        ValueError: no row remains.
    """
    from datasets import Dataset, Features, Value

    reserved = {question_of(row["prompt"]) for row in held_out}
    kept: dict[str, dict[str, Any]] = {}
    skipped: list[BadRowError] = []
    leaks: list[str] = []
    for found in rows:
        try:
            if isinstance(found, BadRowError):
                raise found
            try:
                row = convert(found)
            except RecursionError:
                raise found.bad("holds JSON that is nested too deeply") from None
            if row["problem_id"] in kept:
                raise found.bad(f"the problem_id {row['problem_id']!r} was seen before; give every row its own")
            if question_of(row["prompt"]) in reserved:
                leaks.append(found.where)
                continue
            kept[row["problem_id"]] = row
        except BadRowError as error:
            if strict:
                raise BadRowError(f"{error} (strict=False leaves such rows out)") from None
            skipped.append(error)
    if leaks:
        logger.warning(
            "%s: left out %d of %d training rows whose question is in the test split; the first: %s",
            source,
            len(leaks),
            len(leaks) + len(kept),
            leaks[0],
        )
    if not kept and leaks:
        raise ValueError(f"{source}: every training question is in the test split; give other rows for one of the two")
    if not kept:
        raise ValueError(f"{source}: no usable rows" + (f"; the first problem: {skipped[0]}" if skipped else ""))
    if skipped:
        logger.warning(
            "%s: left out %d of %d rows; the first: %s", source, len(skipped), len(skipped) + len(kept), skipped[0]
        )
    dataset = Dataset.from_list(list(kept.values()))
    # A text column even if no row has a reference, so that tasks can be concatenated.
    return Dataset.from_list(list(kept.values()), features=Features({**dataset.features, "reference": Value("string")}))


def question_of(prompt: Any) -> str:
    """A prompt's question, by which rows of two splits are compared: a text, or the last message, without its spacing."""
    return " ".join(str(prompt if isinstance(prompt, str) else prompt[-1].get("content")).split())
