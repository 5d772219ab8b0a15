"""The embedded tasks: arithmetic mod 10, step by step, under a rulebook that is not in the prompt.

In ``rulebook/sharpen`` the usual rules hold. The house policy knows them and solves a few per cent, because each of its
steps is noisy. In ``rulebook/new-rule`` ``*`` means ``x*n+3``, so a policy with the usual rules gets no chain with a
``*`` right. ``rulebook/two-signals`` has two kinds of problems in turn. *Explained* ones are two ``*`` under the new
rule and two ``+``: never solved by chance, but each has a solution and feedback. *Graded* ones are four ``-``: no solution and no
feedback, and their score is the share of right steps times ``GRADED``, so it ranks attempts and calls none of them solved.
Problems are drawn from a seed. A chain's checksum decides its split, so training and test problems cannot overlap.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from errata.feedback.rulebook import USUAL, RulebookVerifier, rule_of, solve

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["GRADED", "NEW_RULE", "load", "split_of", "verifier", "write_expression"]

NEW_RULE = "x+n, x-n, x*n+3"
_SIZES = {"train": 1024, "test": 256}
_TASKS = {"rulebook/sharpen": (USUAL, 6), "rulebook/new-rule": (NEW_RULE, 4)}
GRADED = 0.8
"""The score of a wholly right attempt at a graded problem: below 1, from which methods call an attempt solved."""
_TWO_SIZES = {"train": 256, "test": 128}
_TWO_STEPS = {"explained": ("*+*+", range(2, 4)), "graded": ("----", range(1, 10))}
"""Operators of a chain in the order that is shuffled, and the numbers after an operator."""


def load(name: str, path: str | None = None, split: str = "train", *, strict: bool = True) -> Dataset:
    """The task's rows, the same on every call. Own columns: ``expression``, ``rulebook``, ``n_star`` (how many ``*``); of
    ``rulebook/two-signals`` also ``kind`` and ``full_marks``, the score of a wholly right attempt.

    Every row can be used, so ``strict`` changes nothing. Raises ``ValueError`` for an unknown split, and for a ``path``,
    because the rows are generated.
    """
    from datasets import Dataset

    if path is not None:
        raise ValueError(f"path: {name} is made, not read; leave the path out")
    if split not in _SIZES:
        raise ValueError(f"split: {name} has {' and '.join(_SIZES)}, not {split!r}")
    if name == "rulebook/two-signals":
        return Dataset.from_list(
            [
                _row(name, split, index, expression, NEW_RULE)
                | {"kind": kind, "full_marks": GRADED if kind == "graded" else 1.0}
                | ({"reference": None} if kind == "graded" else {})
                for index, (kind, expression) in enumerate(_of_two_kinds(split))
            ]
        )
    rulebook, length = _TASKS[name]
    expressions = enumerate(_expressions(split, length))
    return Dataset.from_list([_row(name, split, index, expression, rulebook) for index, expression in expressions])


def verifier(name: str, **args: Any) -> RulebookVerifier:
    """:class:`RulebookVerifier` with ``feedback="trace"|"correction"|"bit"`` and ``trace="all"|"first"``."""
    return RulebookVerifier(**args)


def split_of(expression: str) -> str:
    """``"test"`` for an eighth of all chains, else ``"train"``; it depends on the chain alone."""
    return "test" if zlib.crc32(expression.encode()) % 8 == 0 else "train"


def write_expression(start: int, operations: Sequence[tuple[str, int]]) -> str:
    """``write_expression(7, [("+", 3), ("*", 4)]) == "7a+3b*4"``."""
    letters = zip("abcdefghijklmnopqrstuvwxyz", operations, strict=False)
    return str(start) + "".join(f"{letter}{operator}{n}" for letter, (operator, n) in letters)


def _row(name: str, split: str, index: int, expression: str, rulebook: str) -> dict[str, Any]:
    reference = solve(expression, rule_of(rulebook))
    return {
        "problem_id": f"{name}/{split}/{index}",
        "prompt": [{"role": "user", "content": f"{expression}=?"}],
        "answer": reference[-1],
        "reference": reference,
        "task": name,
        "expression": expression,
        "rulebook": rulebook,
        "n_star": expression.count("*"),
    }


def _of_two_kinds(split: str) -> list[tuple[str, str]]:
    """Kinds and distinct chains, an explained one and a graded one in turn."""
    rng = random.Random(f"{split} two kinds")
    kinds = tuple(_TWO_STEPS)
    found: dict[str, str] = {}
    while len(found) < _TWO_SIZES[split]:
        kind = kinds[len(found) % 2]
        operators, numbers = _TWO_STEPS[kind]
        operations = [(o, rng.choice(numbers)) for o in rng.sample(operators, k=len(operators))]
        expression = write_expression(rng.randrange(10), operations)
        if split_of(expression) == split:
            found.setdefault(expression, kind)
    return [(kind, expression) for expression, kind in found.items()]


def _expressions(split: str, length: int) -> list[str]:
    """Distinct chains with 0, 1, 2, ... ``length - 1`` stars in equal shares, in the order drawn."""
    rng = random.Random(f"{split} {length}")
    found: dict[str, None] = {}
    while len(found) < _SIZES[split]:
        stars = rng.sample(range(length), k=len(found) % length)
        operators = ["*" if k in stars else rng.choice("+-") for k in range(length)]
        expression = write_expression(rng.randrange(10), [(o, rng.randrange(1, 10)) for o in operators])
        if split_of(expression) == split:
            found[expression] = None
    return list(found)
