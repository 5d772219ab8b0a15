"""The judge of verifiable instructions (the kind of arXiv 2311.07911): each constraint is checked, and each broken one named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from errata.feedback.custom import answer_text
from errata.records import Verdict

__all__ = ["KINDS", "InstructionVerifier", "broken", "words_of"]

Constraint = Mapping[str, Any]
"""``{"kind": "length", "words": 7}``; what else it holds depends on its kind, see :func:`broken`."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_FEEDBACK = ("all", "first", "bit")


def words_of(text: str) -> list[str]:
    """``words_of("It's a well-known dog.") == ["It's", "a", "well-known", "dog"]``."""
    return _WORD.findall(text)


def broken(text: str, constraint: Constraint) -> list[str]:
    """What is wrong with ``text`` under one constraint, a sentence each; empty if nothing is.

    The kinds: ``length`` (exactly ``words``), ``sentences`` (exactly ``count``, each with its full stop), ``include``,
    ``exclude`` and ``order`` (``words``, whatever their case), ``case`` (``upper`` or ``lower``) and ``json`` (one object with
    exactly these ``keys``). Raises ``ValueError`` for another kind.
    """
    if constraint.get("kind") not in KINDS:
        raise ValueError(f"constraints: {constraint.get('kind')!r} is none of the kinds {', '.join(KINDS)}")
    return KINDS[constraint["kind"]](text, constraint)


def _length(text: str, c: Constraint) -> list[str]:
    found = len(words_of(text))
    return [] if found == c["words"] else [f"It has {_count(found, 'word')}; it must have exactly {c['words']}."]


def _sentences(text: str, c: Constraint) -> list[str]:
    parts = [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if words_of(part)]
    said = []
    if len(parts) != c["count"]:
        said.append(f"It has {_count(len(parts), 'sentence')}; it must have exactly {c['count']}.")
    if parts and parts[-1][-1] not in ".!?":
        said.append("The last sentence has no full stop.")
    return said


def _include(text: str, c: Constraint) -> list[str]:
    there = {word.casefold() for word in words_of(text)}
    return [f'The word "{word}" is missing.' for word in c["words"] if word.casefold() not in there]


def _exclude(text: str, c: Constraint) -> list[str]:
    there = {word.casefold() for word in words_of(text)}
    return [f'The word "{word}" must not be used.' for word in c["words"] if word.casefold() in there]


def _order(text: str, c: Constraint) -> list[str]:
    there = [word.casefold() for word in words_of(text)]
    wanted = [word for word in c["words"] if word.casefold() in there]
    at, said = -1, []
    for before, word in zip(["", *wanted], wanted, strict=False):
        later = [i for i, found in enumerate(there) if found == word.casefold() and i > at]
        if not later:
            said.append(f'The word "{word}" must come after "{before}".')
            break
        at = later[0]
    return said


def _case(text: str, c: Constraint) -> list[str]:
    wrong = [w for w in words_of(text) if w != (w.upper() if c["case"] == "upper" else w.lower())]
    letters = "capital" if c["case"] == "upper" else "small"
    return [f'"{wrong[0]}" must be written in {letters} letters.'] if wrong else []


def _json(text: str, c: Constraint) -> list[str]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        return [f"It is not JSON: {error.msg} at character {error.pos + 1}."]
    except RecursionError:
        return ["It is not JSON that can be read: it is nested too deeply."]
    if not isinstance(found, dict):
        return ["It is JSON, but not an object."]
    said = [f'The key "{key}" is missing.' for key in c["keys"] if key not in found]
    return said + [f'The key "{key}" must not be there.' for key in found if key not in c["keys"]]


KINDS: dict[str, Callable[[str, Constraint], list[str]]] = {
    "length": _length,
    "sentences": _sentences,
    "include": _include,
    "exclude": _exclude,
    "order": _order,
    "case": _case,
    "json": _json,
}


class InstructionVerifier:
    """Called like a TRL reward function; reads the column ``constraints``, each row's list as JSON text.

    Args:
        feedback: ``all`` names every broken constraint, ``first`` one, ``bit`` none.
        partial: score the share of constraints that are kept. Without it a score is 1.0 or 0.0.
    Raises:
        ValueError: an unknown setting or kind, or data without the column.
    """

    def __init__(self, feedback: str = "all", partial: bool = False) -> None:
        if feedback not in _FEEDBACK:
            raise ValueError(f"feedback: {feedback!r} is none of {', '.join(_FEEDBACK)}")
        self.feedback = feedback
        self.partial = partial
        self.__name__ = "instructions"  # TRL logs a reward function by its name

    def __call__(self, completions: Sequence[Any], prompts: Any = None, **columns: Any) -> list[Verdict]:
        if "constraints" not in columns:
            raise ValueError("columns: the instruction verifier reads the column 'constraints', and the data has none")
        rows = zip(completions, columns["constraints"], strict=True)
        return [self._judge(answer_text(c).strip(), json.loads(constraints)) for c, constraints in rows]

    def _judge(self, text: str, constraints: Sequence[Constraint]) -> Verdict:
        if not text:
            return Verdict(0.0, "" if self.feedback == "bit" else "There is no answer.", kind="format")
        said = {c["kind"]: broken(text, c) for c in constraints}
        failed = [kind for kind, sentences in said.items() if sentences]
        score = 1 - len(failed) / len(said) if self.partial else float(not failed)
        told = [sentence for kind in failed for sentence in said[kind]]
        if not failed or self.feedback == "bit":
            return Verdict(score, info={"broken": failed})
        told = told[:1] if self.feedback == "first" else told
        return Verdict(score, " ".join(told), kind="constraints", info={"broken": failed})


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
