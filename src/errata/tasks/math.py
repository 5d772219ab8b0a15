"""Mathematics with a final answer: sets with reference solutions for training, and competitions for testing.

``path`` is the name of a set below, another set of the hub (``owner/name``), a JSON-lines file, or a folder with
``train.json`` and ``test.json``; several, joined by ``+``, are read one after the other. It may also be a training and a test
set with a comma between them: ``"openthoughts,aime-2025"`` or ``"pope-hard+omnimath,aime-2025"``. Training questions that
the test set has are left out, and counted.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errata.feedback.math import MathVerifier
from errata.tasks.rows import BadRowError, Row, converted, find_file, from_hub, json_lines, rows_beside, to_dataset

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SETS", "HubSet", "load", "verifier"]

logger = logging.getLogger(__name__)


class HubSet(NamedTuple):
    """A set on the hub, the name of its one split there, and the split it is used as here."""

    hub_id: str
    hub_split: str
    split: str


SETS = {
    "openthoughts": HubSet("siyanzhao/Openthoughts_math_30k_opsd", "train", "train"),
    "deepscaler": HubSet("agentica-org/DeepScaleR-Preview-Dataset", "train", "train"),
    "pope-hard": HubSet("CMU-AIRe/POPE-HARD-w-oracle-solution", "train", "train"),
    "omnimath": HubSet("KbsdJames/Omni-MATH", "test", "train"),
    "aime-2024": HubSet("HuggingFaceH4/aime_2024", "train", "test"),
    "aime-2025": HubSet("MathArena/aime_2025", "train", "test"),
    "hmmt-2025": HubSet("MathArena/hmmt_feb_2025", "train", "test"),
    "amc-2023": HubSet("math-ai/amc23", "test", "test"),
    "minerva": HubSet("math-ai/minervamath", "test", "test"),
}
"""``openthoughts`` is OPSD's training set (arXiv 2601.18734), long-form solutions of 30,000 problems; ``deepscaler`` has
40,000 competition problems with solutions. DistIL (arXiv 2606.05152) trains on ``pope-hard``, hard problems with oracle
solutions, and on the problems of ``omnimath`` that its model never solves, 738 in all: the file ``OPSD/data/math/train.jsonl``
of its release, which can be given as ``path``. The others are the tests of the papers; only AIME 2024 has solutions."""

_DEFAULT = "openthoughts,aime-2025"
_CLOSING = "Reason step by step, and put the final answer into \\boxed{}."


def load(name: str, path: str | None, split: str, *, strict: bool = True) -> Dataset:
    """Rows with ``answer`` (an expression) and ``reference`` (a solution, ``None`` if the set has none).

    ``strict=False`` leaves bad rows out and logs how many. Logged too: how many training rows have no solution.

    Raises:
        ValueError: an unknown set or split, a missing file, or a bad row.
        ConnectionError: the hub is needed and cannot be reached.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: {name} has 'train' and 'test', not {split!r}")
    parts = (path or _DEFAULT).split(",")
    source = parts[-1 if split == "test" else 0].strip()
    held_out = _held_out(parts) if split == "train" else iter(())
    sets = [_rows(name, part, split) for part in _parts(source)]
    rows = itertools.chain.from_iterable(sets)
    dataset = to_dataset(rows, _convert, source=source, strict=strict, held_out=converted(held_out, _convert))
    lacking = sum(solution is None for solution in dataset["reference"])
    if lacking and split == "train":
        logger.warning(
            "%s: %d of %d problems of %r have no solution, so no reference to show a teacher",
            name,
            lacking,
            len(dataset),
            source,
        )
    return dataset


def _rows(name: str, source: str, split: str) -> Iterator[Row | BadRowError]:
    """The rows of one set, each with the name of its set."""
    local = Path(source).expanduser()
    rows: Iterator[Row | BadRowError]
    if source in SETS or not local.exists():
        found = _on_hub(source, split)
        fix = f"give a local copy with path=DIR, holding {split}.json with the fields problem, answer and solution"
        rows = from_hub(found.hub_id, split=found.hub_split, task=name, fix=fix)
    else:
        rows = json_lines(find_file(local, split))
    label = source if source in SETS else local.stem
    return (Row(row.fields, row.where, label) if isinstance(row, Row) else row for row in rows)


def _parts(source: str) -> list[str]:
    """The sets that ``+`` joins; a path with that sign is one."""
    return [source] if Path(source).expanduser().exists() else [part.strip() for part in source.split("+")]


def _held_out(parts: list[str]) -> Iterator[Row | BadRowError]:
    """The rows of the test set that goes with a training set: the named one, else those beside its file."""
    source, test = parts[0].strip(), parts[-1].strip()
    try:
        if len(parts) > 1:
            for part in _parts(test):
                yield from _rows("math", part, "test")
        elif Path(source).expanduser().is_dir():
            yield from rows_beside(find_file(source, "train"))
    except ConnectionError as error:
        logger.warning("the training problems were not compared with those of %s: %s", test, error)


def verifier(name: str, **args: Any) -> MathVerifier:
    """See :class:`~errata.feedback.math.MathVerifier` for ``args``."""
    return MathVerifier(**args)


def _on_hub(source: str, split: str) -> HubSet:
    if source in SETS:
        found = SETS[source]
        if found.split != split:
            other = "path='openthoughts,aime-2025' trains on the one and tests on the other"
            raise ValueError(f"path: the set {source!r} is for {found.split}, not for {split}; {other}")
        return found
    if source.count("/") != 1 or source.endswith((".json", ".jsonl")):
        raise ValueError(f"path: no file, folder or set {source!r}; the sets are {', '.join(SETS)}")
    return HubSet(source, split, split)


def _convert(row: Row) -> dict[str, Any]:
    problem, answer = row.text("problem", "question"), row.text("answer", "Answer", "final_answer")
    keys = [row.fields[key] for key in ("id", "idx", "problem_idx", "unique_id") if row.fields.get(key) is not None]
    key = str(keys[0]) if keys else hashlib.sha256(problem.encode()).hexdigest()[:12]
    return {
        "problem_id": f"math/{row.set_name}/{key}",
        "prompt": [{"role": "user", "content": f"{problem.strip()}\n\n{_CLOSING}"}],
        "answer": answer.strip(),
        "reference": (row.optional("solution") or row.optional("oracle_solution")).strip() or None,
        "task": "math",
    }
