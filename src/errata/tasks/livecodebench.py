"""LiveCodeBench v6: the 131 contest problems of February to April 2025 that SDPO (arXiv 2601.20802) trains on.

Both splits have the same problems. Training rows have every other test, test rows all of them. ``path`` is
the file ``test6.jsonl`` of the hub's livecodebench/code_generation_lite, or its folder. Without it the file comes from
the hub.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import pickle
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from errata.feedback.code import CodeVerifier
from errata.tasks.rows import BadRowError, Row, find_file, from_hub, json_lines, to_dataset

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["decode_tests", "load", "verifier"]

logger = logging.getLogger(__name__)

_FILE = "hf://datasets/livecodebench/code_generation_lite/test6.jsonl"
_FIRST, _AFTER, _COUNT = "2025-02-01", "2025-05-01", 131


def load(name: str, path: str | None, split: str, *, strict: bool = True) -> Dataset:
    """Rows with ``tests`` (JSON text) and ``function`` (empty for programs that read and print); no ``reference``.

    ``strict=False`` leaves bad rows out and logs how many.

    Raises:
        ValueError: an unknown split, a missing file, or a bad row.
        ConnectionError: the hub is needed and cannot be reached.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: {name} has 'train' and 'test', not {split!r}")
    rows: Iterator[Row | BadRowError]
    if path is None:
        fix = "give a local copy with path=DIR, holding test6.jsonl"
        rows = from_hub("json", data_files=_FILE, split="train", task=name, fix=fix)
    else:
        rows = json_lines(find_file(path, "test6"))
    dataset = to_dataset(_of_v6(rows), partial(_convert, split=split), source=path or _FILE, strict=strict)
    if path is None and len(dataset) != _COUNT:
        logger.warning("%s: %d problems, where SDPO counted %d", name, len(dataset), _COUNT)
    return dataset


def verifier(name: str, **args: Any) -> CodeVerifier:
    """See :class:`~errata.feedback.code.CodeVerifier` for ``args``; floats are compared exactly, as the benchmark does."""
    return CodeVerifier(**{"float_tolerance": 0.0, **args})


def _of_v6(rows: Iterable[Row | BadRowError]) -> Iterator[Row | BadRowError]:
    for row in rows:
        if isinstance(row, BadRowError) or _FIRST <= str(row.fields.get("contest_date") or _FIRST) < _AFTER:
            yield row


def _convert(row: Row, split: str) -> dict[str, Any]:
    tests = [test for field in ("public_test_cases", "private_test_cases") for test in _tests(row, field)]
    function = _function(row)
    kinds = {test["testtype"] for test in tests}
    if kinds != {"functional" if function else "stdin"}:
        raise row.bad(f"the tests are of kind {' and '.join(sorted(kinds)) or 'none'}, the function is {function!r}")
    shown = tests[::2] if split == "train" else tests
    return {
        "problem_id": f"livecodebench/v6/{row.text('question_id')}",
        "prompt": [{"role": "user", "content": _prompt(row, function)}],
        "answer": "",
        "reference": None,
        "task": "livecodebench/v6",
        "tests": json.dumps([{"input": test["input"], "output": test["output"]} for test in shown]),
        "function": function,
        "difficulty": str(row.fields.get("difficulty") or ""),
    }


def _prompt(row: Row, function: str) -> str:
    if function:
        how = f"Complete this code without changing its names:\n```python\n{row.text('starter_code').rstrip()}\n```"
    else:
        how = "Write a program that reads the input from standard input and prints the answer to standard output."
    return (
        f"Solve the following problem in Python.\n\n{row.text('question_content').strip()}\n\n{how}\n"
        "Use the standard library only; a test may take a few seconds at most. "
        "Give the whole program in one ```python code block at the end of your answer."
    )


def _function(row: Row) -> str:
    """The name of the function to write; empty for a program that reads and prints."""
    metadata = row.fields.get("metadata") or {}
    try:
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    except json.JSONDecodeError as error:
        raise row.bad(f"field 'metadata': broken JSON at column {error.colno}: {error.msg}; write an object") from None
    name = (metadata.get("func_name") or "") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise row.bad("field 'metadata' must be a JSON object, its 'func_name' a text")
    return name


def _tests(row: Row, field: str) -> list[dict[str, str]]:
    try:
        tests = decode_tests(row.text(field))
    except ValueError as error:
        raise row.bad(f"field {field!r}: {error}") from None
    for number, test in enumerate(tests, start=1):
        if not isinstance(test, dict) or not all(isinstance(test.get(k), str) for k in ("input", "output", "testtype")):
            raise row.bad(f"field {field!r}: test {number} needs the texts 'input', 'output' and 'testtype'")
    return tests


def decode_tests(text: str) -> list[dict[str, str]]:
    """A list of tests, given as JSON or as the benchmark compresses it: base64 of zlib of a pickled JSON text.

    Raises ``ValueError`` if it is neither.
    """
    try:
        tests = json.loads(text)
    except ValueError:
        try:
            tests = json.loads(_TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load())
        except (ValueError, TypeError, EOFError, zlib.error, pickle.UnpicklingError) as error:
            raise ValueError(f"neither JSON nor the benchmark's compressed form ({error})") from None
    if not isinstance(tests, list):
        raise ValueError(f"must be a list of tests, not {type(tests).__name__}")
    return tests


class _TextUnpickler(pickle.Unpickler):
    """Loads plain values only. A pickle that names a function or class is refused, because it could run any code."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
