"""Multiple choice: which option was chosen, whether it is right, and how the format failed.

The strict format is one ``<answer>`` block holding one capital letter and nothing after it. Reading is tolerant, so
that a right choice in a sloppy format still counts; ``info["strict_format"]`` tells the two apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from errata.feedback.custom import answer_text
from errata.records import Verdict

__all__ = ["Choice", "ChoiceVerifier", "read_choice"]

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_MARKUP = re.compile(r"\\(?:boxed|text|mathrm|textbf)\b|[*_$`{}]")


@dataclass(frozen=True, slots=True)
class Choice:
    """What a completion chose: ``Choice("B", False, "text follows the <answer> block")``."""

    letter: str | None
    """The option, ``None`` if no single one could be read."""
    strict: bool
    """Whether the format was kept to the letter."""
    problem: str = ""
    """How the format failed; empty if it did not."""


def read_choice(text: str, options: Sequence[str] = ("", "", "", "")) -> Choice:
    """Reads the choice among ``options`` (their texts, labelled A, B, ... in order) from a completion without thinking.

    Read are, in this order: the last ``<answer>`` block, closed or not (a letter, ``(B)``, ``B: its text``,
    ``option B``, or the option's own text); without a block, ``\\boxed{B}``, ``the answer is B`` or a last line that is
    only the letter.
    """
    letters = "".join(chr(ord("A") + i) for i in range(len(options)))
    blocks = _BLOCK.findall(text)
    opened = re.search(r"<answer>(?!.*<answer>)(.*)", text, re.DOTALL | re.IGNORECASE)
    if not blocks and opened is None:
        return Choice(_letter_in_prose(text, letters), False, "there is no <answer> block")
    if not blocks:
        return Choice(_letter(opened[1] if opened else "", letters, options), False, "the <answer> block is not closed")
    letter = _letter(blocks[-1], letters, options)
    if len(blocks) > 1:
        return Choice(letter, False, f"there are {len(blocks)} <answer> blocks")
    content = blocks[0].strip()
    if not content:
        return Choice(None, False, "the <answer> block is empty")
    if len(content) != 1 or content not in letters:
        lower = len(content) == 1 and content.upper() in letters
        return Choice(
            letter, False, f"the <answer> block holds {'a small letter' if lower else 'more than one letter'}"
        )
    if not re.search(r"<answer>\s*\w\s*</answer>\s*$", text):
        return Choice(letter, False, "text follows the <answer> block")
    return Choice(letter, True)


def _letter(content: str, letters: str, options: Sequence[str]) -> str | None:
    plain = _MARKUP.sub("", content).strip()
    if match := re.fullmatch(r"[(\[]?([A-Za-z])[)\].:]*", plain):
        letter = match[1].upper()
        return letter if letter in letters else None
    for pattern in (
        rf"[(\[]?([{letters}])[)\].:]+\s",
        rf"(?i:.*\b(?:option|choice|answer(?: is)?:?))\s*[(\[]?([{letters}])\b",
    ):
        if match := re.match(pattern, plain):
            return match[1]
    same = [letter for letter, option in zip(letters, options, strict=True) if option and _norm(option) == _norm(plain)]
    return same[0] if len(same) == 1 else None


def _letter_in_prose(text: str, letters: str) -> str | None:
    if boxed := re.findall(rf"\\boxed\{{\s*(?:\\text\{{)?\s*\(?([{letters}])\b", text):
        return str(boxed[-1])
    # "the answer is A particle" is no choice: after the letter comes punctuation, a line's end or a reason.
    after = r"(?=\s*(?:[.,;:)\]*]|$|because\b|since\b|as\b))"
    said = rf"(?i:\banswer(?: is| would be|:))\s*:?\s*(?i:option\s*)?[(\[*]*([{letters}])[)\]*]*{after}"
    if found := re.findall(said, text, re.MULTILINE):
        return str(found[-1])
    last = _MARKUP.sub("", text).strip().rpartition("\n")[2]
    match = re.fullmatch(rf"[(\[]?([{letters}])[)\].]*", last.strip())
    return match[1] if match else None


def _norm(text: str) -> str:
    return " ".join(_MARKUP.sub("", text).split()).rstrip(".").casefold()


class ChoiceVerifier:
    """Judges multiple choice as a TRL reward function does: ``verifier(completions=..., answer=[...], options=[...])``.

    Reads the columns ``answer`` (a letter) and ``options`` (the options' texts in order; four unnamed ones if absent).
    ``show_answer`` names the right option in the feedback on a wrong one, which then leaks the answer;
    ``require_format`` gives no score for a right choice in a sloppy format.
    Raises ``ValueError`` naming the row if the data has no ``answer`` or one that is none of the options' letters.
    """

    def __init__(self, *, show_answer: bool = False, require_format: bool = False) -> None:
        self.show_answer = show_answer
        self.require_format = require_format
        self.__name__ = "choice"

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[Verdict]:
        if "answer" not in columns:
            raise ValueError("columns: the choice verifier reads the column 'answer', and the data has none")
        options = columns.get("options") or [("", "", "", "")] * len(completions)
        rows = zip(completions, columns["answer"], options, strict=True)
        return [self._judge(answer_text(c), a, o, row) for row, (c, a, o) in enumerate(rows)]

    def _judge(self, text: str, answer: str, options: Sequence[str], row: int) -> Verdict:
        letters = [chr(ord("A") + i) for i in range(len(options))]
        if answer not in letters:
            raise ValueError(f"answer: {answer!r} in row {row} of the batch is none of {', '.join(letters)}")
        choice = read_choice(text, options)
        info: dict[str, Any] = {"chosen": choice.letter, "strict_format": choice.strict}
        right = choice.letter == answer
        score = float(right and (choice.strict or not self.require_format))
        if right and choice.strict:
            return Verdict(score, info=info)
        said = []
        if choice.letter is None:
            said.append("No answer could be read.")
        elif not right:
            said.append(f"You chose {_named(choice.letter, options)}. That is not the right option.")
        if choice.problem:
            wanted = f"end with exactly one of {', '.join(letters)}, alone, between <answer> and </answer>"
            said.append(f"Format: {choice.problem}; {wanted}.")
        if self.show_answer and not right:
            said.append(f"The right option is {_named(answer, options)}.")
        return Verdict(
            score,
            " ".join(said),
            kind="choice" if choice.letter is not None and not right else "format",
            # Of two options, the wrong one names the right one.
            leaks_answer=not right and (self.show_answer or (len(options) == 2 and choice.letter is not None)),
            info=info,
        )


def _named(letter: str, options: Sequence[str]) -> str:
    text = options[ord(letter) - ord("A")].strip().rstrip(".")
    return f"{letter} ({text})" if text else letter
