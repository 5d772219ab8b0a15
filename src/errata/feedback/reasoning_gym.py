"""The judge of reasoning-gym's tasks: the generator's own score, and where a wrong answer parts from the right one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from errata.feedback.custom import answer_text
from errata.records import Verdict

__all__ = ["ReasoningGymVerifier", "read_answer", "where_they_part"]

_FEEDBACK = ("difference", "place", "bit")
_BLOCK = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)


class ReasoningGymVerifier:
    """Called like a TRL reward function; reads the columns ``task``, ``draw`` and ``answer``.

    Args:
        score: what the generator's scorer gives an answer, 0 to 1: a function of ``task``, ``draw`` and the answer.
        feedback: ``difference`` says what was expected, what was written and where the two part; ``place`` says only up to
            where the answer is right, which does not tell the answer; ``bit`` says nothing.
        partial: give the scorer's partial scores too. Without it a score is 1.0 or 0.0.
    Raises:
        ValueError: an unknown setting, or data without these columns.
    """

    def __init__(
        self, score: Callable[[str, int, str], float], feedback: str = "difference", partial: bool = False
    ) -> None:
        if feedback not in _FEEDBACK:
            raise ValueError(f"feedback: {feedback!r} is none of {', '.join(_FEEDBACK)}")
        self.score = score
        self.feedback = feedback
        self.partial = partial
        self.__name__ = "reasoning_gym"  # TRL logs a reward function by its name

    def __call__(self, completions: Sequence[Any], prompts: Any = None, **columns: Any) -> list[Verdict]:
        for name in ("task", "draw", "answer"):
            if name not in columns:
                raise ValueError(
                    f"columns: the reasoning-gym verifier reads the column {name!r}, and the data has none"
                )
        rows = zip(completions, columns["task"], columns["draw"], columns["answer"], strict=True)
        return [self._judge(read_answer(answer_text(c)), task, draw, right) for c, task, draw, right in rows]

    def _judge(self, written: str, task: str, draw: int, right: str) -> Verdict:
        value = self.score(task, draw, written)
        info = {"chosen": written or None}
        if value >= 1 or self.feedback == "bit":
            return Verdict(value if self.partial else float(value >= 1), info=info)
        if not written:
            told, kind = "There is no answer.", "format"
        elif not right:  # several answers are right, and the entry names none
            told, kind = f"{written!r} is wrong.", "difference"
        elif self.feedback == "place":
            told, kind = _place(right, written), "place"
        else:
            told, kind = where_they_part(right, written), "difference"
        leaks = bool(right) and kind == "difference"
        return Verdict(value if self.partial else 0.0, told, kind=kind, leaks_answer=leaks, info=info)


def read_answer(text: str) -> str:
    """What a completion gives as its answer: the last ``<answer>`` block, else all of it."""
    blocks = _BLOCK.findall(text)
    return str(blocks[-1] if blocks else text).strip()


def where_they_part(expected: str, written: str) -> str:
    """Expected, written, and the first line, item, word or character in which they differ.

    ``where_they_part("4, 7", "4, 6") == "Expected '4, 7', got '4, 6': item 2 should be '7', not '6'."``
    """
    unit, at, want, got = _first_difference(expected, written)
    if want is None:
        tail = f"nothing more was to come after {unit} {at}, but {got!r} follows"
    elif got is None:
        tail = f"{unit} {at + 1}, {want!r}, and what follows it are missing"
    else:
        tail = f"{unit} {at + 1} should be {want!r}, not {got!r}"
    return f"Expected {expected!r}, got {written!r}: {tail}."


def _place(expected: str, written: str) -> str:
    """How far a wrong answer is right, without what should come then."""
    unit, at, want, got = _first_difference(expected, written)
    if want is None:
        return f"{written!r} is right up to {unit} {at}, then it should end, but {got!r} follows."
    if got is None:
        return f"{written!r} is right as far as it goes, but it stops too early, after {unit} {at}."
    return (
        f"{written!r} is right up to {unit} {at}; {unit} {at + 1}, {got!r}, is wrong."
        if at
        else f"{written!r} is wrong."
    )


def _first_difference(expected: str, written: str) -> tuple[str, int, str | None, str | None]:
    """Unit, how many of them agree, and the first that do not (``None`` where one has ended)."""
    unit, want, got = _parts(expected, written)
    at = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), min(len(want), len(got)))
    return unit, at, want[at] if at < len(want) else None, got[at] if at < len(got) else None


def _parts(expected: str, written: str) -> tuple[str, list[str], list[str]]:
    """Both cut into the largest units that the expected answer has several of."""
    for unit, cut in (("line", str.splitlines), ("item", _items), ("word", str.split)):
        if len(want := cut(expected)) > 1:
            return unit, want, cut(written)
    return "character", list(expected), list(written)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]
