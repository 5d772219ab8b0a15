"""Tests of wording: does a completion mention feedback that the student never saw, or quote a text that it did not?

A student that learned to repeat its teacher's context does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from errata.feedback.custom import completion_text

__all__ = ["QUOTE_WORDS", "mentions_feedback", "quotes"]

QUOTE_WORDS = 8
"""Consecutive words that make a quotation."""

_ANSWER = r"(?:solution|answer|attempt|response)"
_SOURCE = (
    r"(?P<source>hints?|feedback|critiques?|corrections?|error message|traceback|"
    rf"(?:reference|provided|given|correct|known|shown|earlier|previous) {_ANSWER})"
    r"(?! (?:choices?|options?|format))"
)
_PATTERNS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:as|per|according to|based on|following|given|from|using|considering|in line with) "
        rf"(?:the|this|that|your|my) {_SOURCE}\b",
        rf"\b(?:the|this|that|your) {_SOURCE}(?: above)? "
        r"(?:says|said|states|stated|suggests?|suggested|indicates?|indicated|mentions|mentioned|tells|told|"
        r"points out|pointed out|reveals|confirms|confirmed)\b",
        rf"\b(?:my|your) (?P<source>(?:earlier|previous|first|last|failed|unsuccessful) {_ANSWER})\b",
        r"\b(?:I|we) (?:was|were|am|are|have been) "
        r"(?P<source>(?:told|shown)\b[^.]{0,40}\b(?:solution|answer|feedback|hint))\b",
        r"\b(?:as )?the (?P<source>judge|grader|verifier|checker) (?:says|said|expects|expected|wants|wanted|told)\b",
    )
]


def mentions_feedback(
    completion: str | Sequence[Mapping[str, Any]], prompt: str | Sequence[Mapping[str, Any]] = ""
) -> str | None:
    """The first words with which a completion mentions feedback, a shown solution or an earlier attempt; else ``None``.

    ``mentions_feedback("As the hint says, x = 3.") == "As the hint"``. Words that are in the prompt do not count, because
    a problem may come with a hint. Use the share of such completions as a metric. Do not use it as a verifier.
    """
    prompt_text = prompt if isinstance(prompt, str) else " ".join(str(m.get("content") or "") for m in prompt)
    text = " ".join(completion_text(completion).split())
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            if match["source"].casefold() not in prompt_text.casefold():
                return match[0]
    return None


def quotes(
    completion: str | Sequence[Mapping[str, Any]], source: str, prompt: str | Sequence[Mapping[str, Any]] = ""
) -> str | None:
    """The first ``QUOTE_WORDS`` consecutive words of ``source`` that a completion holds and its prompt does not; else ``None``.

    Upper and lower case are one. A source of fewer words cannot be quoted.
    """
    prompt_text = prompt if isinstance(prompt, str) else " ".join(str(m.get("content") or "") for m in prompt)
    shown = _runs(source) - _runs(prompt_text)
    words = completion_text(completion).casefold().split() if shown else []
    for start in range(len(words) - QUOTE_WORDS + 1):
        run = tuple(words[start : start + QUOTE_WORDS])
        if run in shown:
            return " ".join(run)
    return None


def _runs(text: str) -> set[tuple[str, ...]]:
    words = text.casefold().split()
    return {tuple(words[start : start + QUOTE_WORDS]) for start in range(len(words) - QUOTE_WORDS + 1)}
