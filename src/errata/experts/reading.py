"""Reading what an expert wrote with the policy's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from errata.experts.answers import Question

__all__ = ["Reading", "Reply"]


class Reply(NamedTuple):
    """One continuation."""

    text: str
    ended: bool
    """Whether the expert ended its answer after ``text``, rather than being cut."""


class Reading:
    """An expert's text as draws of the policy's next token.

    A continuation's text is appended to the text of the prompt and the student's tokens up to the state, and the whole is
    encoded with the policy's tokenizer. The encoding must begin with exactly those tokens (else the draw is *misaligned*
    and dropped: the expert's first characters melted into the student's last token). The token after them is the draw,
    if another follows it or the expert ended there; the text's last token might have grown. Where the expert ended and
    nothing follows, the draw is the end of the sequence.

    Further tokens of the continuation are draws at the later states, as long as all before them are the student's own
    tokens. Only the first ``answer_tokens`` − 2 tokens count: with the expert's tokens the policy's, those are whole
    whatever they are; later ones would be whole more often if they are not followed by the end, which biases the draws.
    """

    def __init__(self, tokenizer: Any, answer_tokens: int) -> None:
        self._tokenizer, self._most = tokenizer, answer_tokens - 2

    def text(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def readable(self, question: Question, asked: Sequence[int]) -> list[int]:
        """The states whose own text is read as their tokens, so that a continuation can align and is worth asking for.

        A sampled completion need not be how its tokenizer would split its text; behind such a place nothing aligns.
        """
        ids = [*question.prompt_ids, *question.completion_ids]
        again = self._encode([self.text(ids)])[0]
        same = next((i for i, (a, b) in enumerate(zip(ids, again, strict=False)) if a != b), min(len(ids), len(again)))
        # One more: a state right after the first token that is read differently may go on otherwise than it did.
        return [t for t in asked if len(question.prompt_ids) + t <= same + 1]

    def draws(self, question: Question, replies: Sequence[tuple[int, Reply]]) -> list[list[tuple[int, int]]]:
        """Per (state, reply) the draws ``(state, token)`` it is good for; none where it is misaligned or cut too early."""
        if not replies:
            return []
        befores = [[*question.prompt_ids, *question.completion_ids[:t]] for t, _ in replies]
        texts = [self.text(before) + reply.text for before, (_, reply) in zip(befores, replies, strict=True)]
        encoded = self._encode(texts)
        return [
            self._tokens(question, t, before, ids, reply.ended)
            for before, ids, (t, reply) in zip(befores, encoded, replies, strict=True)
        ]

    def _tokens(
        self, question: Question, t: int, before: list[int], ids: list[int], ended: bool
    ) -> list[tuple[int, int]]:
        if ids[: len(before)] != before:
            return []
        new = ids[len(before) :]
        whole = [*new, self._tokenizer.eos_token_id] if ended else new[:-1]
        draws: list[tuple[int, int]] = []
        for at, token in enumerate(whole[: self._most], start=t):
            draws.append((at, token))
            if at >= len(question.completion_ids) or token != question.completion_ids[at]:
                break
        return draws

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return encoded
