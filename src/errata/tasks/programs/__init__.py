"""Small programming problems with hidden tests: write one Python function.

The problems were written for errata. Each is a function in one of the modules here, with its statement as docstring and a
right solution as body. A prompt shows two of its tests. Every fifth problem is in the test split. The other tests are hidden;
a verdict shows those that fail first. Needs nothing beyond errata, and any model can be evaluated with it.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from errata.feedback.code import CodeVerifier
from errata.tasks.programs._problem import CASES

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load", "verifier"]

_MODULES = ("numbers", "strings", "lists", "records", "grids", "machines")
_SHOWN = 2


def load(name: str, path: str | None = None, split: str = "train", *, strict: bool = True) -> Dataset:
    """Rows with ``tests`` (JSON text), ``function`` and ``topic``; ``reference`` is a right solution.

    Every row can be used, so ``strict`` changes nothing. Raises ``ValueError`` for an unknown split, and for a ``path``,
    because the problems are part of errata.
    """
    from datasets import Dataset

    if path is not None:
        raise ValueError(f"path: the problems of {name} are part of errata, not read; leave the path out")
    if split not in ("train", "test"):
        raise ValueError(f"split: {name} has 'train' and 'test', not {split!r}")
    rows = [_row(name, topic, function) for topic in _MODULES for function in _functions(topic)]
    return Dataset.from_list([row for number, row in enumerate(rows) if (number % 5 == 4) == (split == "test")])


def verifier(name: str, **args: Any) -> CodeVerifier:
    """See :class:`~errata.feedback.code.CodeVerifier` for ``args``."""
    return CodeVerifier(**args)


def _functions(topic: str) -> list[Callable[..., Any]]:
    module = importlib.import_module(f"errata.tasks.programs.{topic}")
    return [f for f in vars(module).values() if inspect.isfunction(f) and f.__name__ in CASES]


def _row(task: str, topic: str, function: Callable[..., Any]) -> dict[str, Any]:
    name = function.__name__
    tests = [
        {
            "input": "\n".join(json.dumps(argument) for argument in arguments),
            "output": json.dumps(function(*copy.deepcopy(arguments))),
        }
        for arguments in CASES[name]
    ]
    examples = "\n".join(
        f"{name}({', '.join(map(repr, arguments))}) == {function(*copy.deepcopy(arguments))!r}"
        for arguments in CASES[name][:_SHOWN]
    )
    statement, head, body = inspect.getdoc(function), *_source(function)
    prompt = (
        f"Write a Python function.\n\n{statement}\n\n```python\n{head}\n```\n\nExamples:\n{examples}\n\n"
        "Use the standard library only. Give the whole function in one ```python code block at the end of your answer."
    )
    return {
        "problem_id": f"{task}/{name}",
        "prompt": [{"role": "user", "content": prompt}],
        "answer": "",
        "reference": f"```python\n{head}\n{body}\n```",
        "task": task,
        "tests": json.dumps(tests),
        "function": name,
        "topic": topic,
    }


def _source(function: Callable[..., Any]) -> tuple[str, str]:
    """The line with the function's name and arguments, and the lines of its body below the docstring."""
    source = inspect.getsource(function)
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    lines = source.splitlines()
    head, body = lines[node.lineno - 1 : node.body[0].lineno - 1], lines[node.body[0].end_lineno :]
    return "\n".join(head), "\n".join(body).strip("\n")
