"""Reading what an expert wrote with the policy's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from errata.experts.queries import Question

__all__ = ["HALF", "Reply", "draws", "text_of", "tokens_after"]

HALF = "\ufffd"
"""What decoding makes of a token that ends within a character."""


class Reply(NamedTuple):
    """One continuation."""

    text: str
    ended: bool
    """Whether the expert ended its answer after ``text``, rather than being cut."""


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens included, nothing tidied."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def tokens_after(tokenizer: Any, prefix: Sequence[int], reply: Reply) -> list[int]:
    """The policy's tokens that spell an expert's ``reply`` after ``prefix``, as far as they are complete; none where that is
    not known.

    The whole text is tokenised anew. Where its tokens begin with ``prefix``, the others are the answer. Where they do not
    (the policy's own tokens of ``prefix`` were not the tokenizer's, or the texts merge across the boundary), the
    reply is tokenised alone, and counts only if prefix and it decode to the very same text. The last token might have
    grown, unless the expert ended there; then the end of the sequence follows it.

    Args:
        tokenizer: the policy's.
        prefix: the policy's own tokens so far.
        reply: what the expert wrote next.
    """
    text, ended = reply
    if text.endswith(HALF):  # within a character: what comes next decides what this is
        text, ended = text.rstrip(HALF), False
    if not text:
        return [tokenizer.eos_token_id] if ended else []
    before = text_of(tokenizer, prefix)
    ids = _encode(tokenizer, before + text)
    rest = ids[len(prefix) :]
    if ids[: len(prefix)] != list(prefix):
        rest = _encode(tokenizer, text)
        if text_of(tokenizer, [*prefix, *rest]) != before + text:
            return []
    if not rest or not ended:
        return rest[:-1]
    return [*rest, tokenizer.eos_token_id]


def draws(tokenizer: Any, question: Question, t: int, reply: Reply, most: int) -> list[tuple[int, int]]:
    """The draws ``(state, token)`` of the policy's next token that a reply at state ``t`` is good for.

    The first token is one at ``t``. Further ones are draws at the later states, as long as all before them are the
    student's own tokens, and only the first ``most``: of an answer of n tokens n - 2 are whole whatever they are, if
    the expert's tokens are the policy's. Later ones would be whole more often if they are not followed by the end,
    which biases the draws.
    """
    own = question.completion_ids
    found: list[tuple[int, int]] = []
    tokens = tokens_after(tokenizer, [*question.prompt_ids, *own[:t]], reply)
    for at, token in enumerate(tokens[:most], start=t):
        found.append((at, token))
        if at >= len(own) or token != own[at]:
            break
    return found


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
