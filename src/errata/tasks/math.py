"""Mathematics with a final answer: sets with reference solutions for training, and competitions for testing.

``path`` is the name of a set below, another set of the hub (``owner/name``), a JSON-lines file, or a folder with
``train.json`` and ``test.json``. It may also be two of these, ``"openthoughts,aime-2025"``: the training set and the test
set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from errata.feedback.math import MathVerifier
from errata.tasks.rows import BadRowError, Row, find_file, from_hub, held_out_rows, json_lines, to_dataset

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SETS", "HubSet", "load", "verifier"]


class HubSet(NamedTuple):
    """A set on the hub, the name of its one split there, and the split it is used as here."""

    hub_id: str
    hub_split: str
    split: str


SETS = {
    "openthoughts": HubSet("siyanzhao/Openthoughts_math_30k_opsd", "train", "train"),
    "deepscaler": HubSet("agentica-org/DeepScaleR-Preview-Dataset", "train", "train"),
    "aime-2024": HubSet("HuggingFaceH4/aime_2024", "train", "test"),
    "aime-2025": HubSet("MathArena/aime_2025", "train", "test"),
    "hmmt-2025": HubSet("MathArena/hmmt_feb_2025", "train", "test"),
    "amc-2023": HubSet("math-ai/amc23", "test", "test"),
    "minerva": HubSet("math-ai/minervamath", "test", "test"),
}
"""``openthoughts`` is OPSD's training set (arXiv 2601.18734), long-form solutions of 30,000 problems; ``deepscaler`` has
40,000 competition problems with solutions. The others are the tests of the papers; only AIME 2024 has solutions."""

_DEFAULT = "openthoughts,aime-2025"
_CLOSING = "Reason step by step, and put the final answer into \\boxed{}."


def load(name: str, path: str | None, split: str, *, strict: bool = True) -> Dataset:
    """Rows with ``answer`` (an expression) and ``reference`` (a solution, ``None`` if the set has none).

    ``strict=False`` leaves bad rows out and logs how many.

    Raises:
        ValueError: an unknown set or split, a missing file, or a bad row.
        ConnectionError: the hub is needed and cannot be reached.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: {name} has 'train' and 'test', not {split!r}")
    parts = (path or _DEFAULT).split(",")
    source = parts[-1 if split == "test" else 0].strip()
    local = Path(source).expanduser()
    held_out: Any = ()
    rows: Iterator[Row | BadRowError]
    if source in SETS or not local.exists():
        found = _on_hub(source, split)
        fix = f"give a local copy with path=DIR, holding {split}.json with the fields problem, answer and solution"
        rows = from_hub(found.hub_id, split=found.hub_split, task=name, fix=fix)
    else:
        file = find_file(local, split)
        rows = json_lines(file)
        test = Path(parts[-1].strip()).expanduser()
        if split == "train" and (local.is_dir() or len(parts) > 1) and test.exists():
            held_out = held_out_rows(file, _convert, test_file=find_file(test, "test") if len(parts) > 1 else None)
    label = source if source in SETS else local.stem
    return to_dataset(rows, partial(_convert, source=label), source=source, strict=strict, held_out=held_out)


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


def _convert(row: Row, source: str = "") -> dict[str, Any]:
    problem, answer = row.text("problem", "question"), row.text("answer", "Answer", "final_answer")
    keys = [row.fields[key] for key in ("id", "idx", "problem_idx", "unique_id") if row.fields.get(key) is not None]
    key = str(keys[0]) if keys else hashlib.sha256(problem.encode()).hexdigest()[:12]
    return {
        "problem_id": f"math/{source}/{key}",
        "prompt": [{"role": "user", "content": f"{problem.strip()}\n\n{_CLOSING}"}],
        "answer": answer.strip(),
        "reference": row.optional("solution").strip() or None,
        "task": "math",
    }
