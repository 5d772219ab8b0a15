"""Tool use: ToolAlpaca questions answered with written tool calls, in the split of the SDPO release (arXiv 2601.20802).

``path`` is the folder of that release with ``train.json`` and ``test.json`` (JSON lines). The hub has no copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from errata.feedback.tool_call import ToolCallVerifier
from errata.feedback.tool_text import gold_calls, written
from errata.tasks.rows import Row, converted, find_file, json_lines, rows_beside, to_dataset

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load", "verifier"]


def load(name: str, path: str | None, split: str, *, strict: bool = True) -> Dataset:
    """Rows with ``answer`` (a JSON list of calls) and ``reference`` (the calls as a completion writes them).

    ``strict=False`` leaves bad rows out and logs how many. Raises ``ValueError`` without a path, for an unknown split, a
    missing file, or a bad row.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: {name} has 'train' and 'test', not {split!r}")
    if path is None:
        raise ValueError("path: tooluse needs path=DIR with train.json and test.json (lasgroup/SDPO, datasets/tooluse)")
    file = find_file(path, split, folders=("tooluse",))
    held_out = converted(rows_beside(file), _convert) if split == "train" else ()
    return to_dataset(json_lines(file), _convert, source=str(file), strict=strict, held_out=held_out)


def verifier(name: str, **args: Any) -> ToolCallVerifier:
    """See :class:`~errata.feedback.tool_call.ToolCallVerifier` for ``args``."""
    return ToolCallVerifier(**args)


def _convert(row: Row) -> dict[str, Any]:
    prompt, answer, system = row.text("prompt"), row.text("answer"), row.optional("system")
    try:
        calls = gold_calls(answer)
    except ValueError as error:
        raise row.bad(f"field {error}") from None
    return {
        "problem_id": f"tooluse/{row.text('idx')}",
        "prompt": [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}],
        "answer": answer,
        "reference": written(c for c in calls if not c.optional),
        "task": "tooluse",
    }
