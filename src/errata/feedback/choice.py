"""Multiple choice: which option was chosen, whether it is right, and how the format failed.

The strict format is one ``<answer>`` block holding one capital letter and nothing after it. Reading is tolerant, so
that a right choice in a sloppy format still counts; ``info["strict_format"]`` tells the two apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.feedback.choice_reading import clean, letter_in_block, letter_in_prose
from errata.feedback.custom import answer_text
from errata.records import Verdict

__all__ = ["Choice", "ChoiceVerifier", "read_choice"]

_UNNAMED = ("", "", "", "")
_SHOWN = 120  # characters of an option's text that the feedback repeats


@dataclass(frozen=True, slots=True)
class Choice:
    """What a completion chose: ``Choice("B", False, "text follows the <answer> block")``."""

    letter: str | None
    """The option, ``None`` if no single one could be read."""
    strict: bool
    """Whether the format was kept to the letter."""
    problem: str = ""
    """How the format failed; empty if it did not."""


def read_choice(text: str, options: Sequence[Any] | Mapping[str, Any] = _UNNAMED) -> Choice:
    """Reads the choice among ``options`` from a completion without thinking.

    ``options`` are their texts, labelled A, B, ... in order, or a mapping of letters to texts. Read is the last
    ``<answer>`` block, closed or not (a letter, ``(B)``, ``B: its text``, ``option B``, or the option's own text); without
    a block the last statement of a choice: ``\\boxed{B}``, ``the answer is B``, ``B is correct`` or a last line.
    Raises ``ValueError`` for options that are neither.
    """
    named = _by_letter(options)
    letters = "".join(named)
    text, written = clean(text), text
    *before, last = re.split("<answer>", text)
    closing = last.find("</answer>")
    if not before and closing < 0:
        return Choice(letter_in_prose(text, named), False, "there is no <answer> block")
    content = last[:closing] if closing >= 0 else last
    letter = letter_in_block(content, named)
    if closing < 0:
        return Choice(letter, False, "the <answer> block is not closed")
    if len(before) > 1:
        return Choice(letter, False, f"there are {len(before)} <answer> blocks")
    content = content.strip()
    if not content:
        return Choice(None, False, "the <answer> block is empty")
    if letter is None:
        return Choice(None, False, "the <answer> block names no single option")
    if len(content) != 1 or content not in letters:
        lower = len(content) == 1 and content.upper() in letters
        return Choice(
            letter, False, f"the <answer> block holds {'a small letter' if lower else 'more than the letter'}"
        )
    if not re.search(r"<answer>\s*\w\s*</answer>\s*$", written):
        return Choice(letter, False, "text follows the <answer> block")
    return Choice(letter, True)


def _by_letter(options: Sequence[Any] | Mapping[str, Any]) -> dict[str, str]:
    """Each option's letter with its text. Raises ``ValueError`` for options that are no texts in order or by letter."""
    if isinstance(options, Mapping) and set(options) == {"label", "text"}:  # as several data sets of the hub have them
        options = dict(zip(options["label"], options["text"], strict=True))
    if isinstance(options, Mapping):
        given = {str(key).strip().upper(): value for key, value in options.items() if value is not None}
        if len(given) < 2 or not all(len(key) == 1 and "A" <= key <= "Z" for key in given):
            raise ValueError(f"must be texts in order, or texts by letters A to Z, not {options!r:.80}")
        return {key: str(value) for key, value in sorted(given.items())}
    if isinstance(options, str | bytes) or not isinstance(options, Sequence) or not 2 <= len(options) <= 26:
        raise ValueError(f"must be 2 to 26 texts in order, or texts by letters A to Z, not {options!r:.80}")
    return {chr(ord("A") + i): "" if text is None else str(text) for i, text in enumerate(options)}


class ChoiceVerifier:
    """Judges multiple choice as a TRL reward function does: ``verifier(completions=..., answer=[...], options=[...])``.

    Reads the columns ``answer`` (a letter) and ``options`` (the options' texts in order, or by their letters; four unnamed
    ones if absent; numbers are taken as text).
    ``show_answer`` names the right option in the feedback on a wrong one, which then leaks the answer;
    ``require_format`` gives no score for a right choice in a sloppy format.
    Raises ``ValueError`` naming the row if the data has no ``answer``, one that is none of the options' letters, or
    options of another form.
    """

    def __init__(self, *, show_answer: bool = False, require_format: bool = False) -> None:
        self.show_answer = show_answer
        self.require_format = require_format
        self.__name__ = "choice"

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[Verdict]:
        if "answer" not in columns:
            raise ValueError("columns: the choice verifier reads the column 'answer', and the data has none")
        options = columns.get("options") or [_UNNAMED] * len(completions)
        rows = zip(completions, columns["answer"], options, strict=True)
        return [self._judge(answer_text(c), a, o, row) for row, (c, a, o) in enumerate(rows)]

    def _judge(self, text: str, answer: Any, given: Any, row: int) -> Verdict:
        try:
            options = _by_letter(_UNNAMED if given is None else given)
        except ValueError as error:
            raise ValueError(f"options: row {row} of the batch {error}") from None
        right_letter = answer.strip().strip("().") if isinstance(answer, str) else answer
        if right_letter not in list(options):
            raise ValueError(f"answer: {answer!r} in row {row} of the batch is none of {', '.join(options)}")
        choice = read_choice(text, options)
        info: dict[str, Any] = {"chosen": choice.letter, "strict_format": choice.strict}
        right = choice.letter == right_letter
        score = float(right and (choice.strict or not self.require_format))
        if right and choice.strict:
            return Verdict(score, info=info)
        said = []
        if choice.letter is None:
            said.append("No answer could be read.")
        elif not right:
            said.append(f"You chose {_named(choice.letter, options)}. That is not the right option.")
        if choice.problem:
            wanted = f"end with exactly one of {', '.join(options)}, alone, between <answer> and </answer>"
            said.append(f"Format: {choice.problem}; {wanted}.")
        if self.show_answer and not right:
            said.append(f"The right option is {_named(right_letter, options)}.")
        return Verdict(
            score,
            " ".join(said),
            kind="choice" if choice.letter is not None and not right else "format",
            # Of two options, the wrong one names the right one.
            leaks_answer=not right and (self.show_answer or (len(options) == 2 and choice.letter is not None)),
            info=info,
        )


def _named(letter: str, options: Mapping[str, str]) -> str:
    text = " ".join(options[letter].split()).rstrip(".")
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]} ..."
    return f"{letter} ({text})" if text else letter
