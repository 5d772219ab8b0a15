"""From an expert's text to the policy's next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HALF = "\ufffd"
"""What decoding makes of a token that ends within a character."""


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens included, nothing tidied."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def next_token(tokenizer: Any, prefix: Sequence[int], continuation: str, *, ended: bool) -> int | None:
    """The policy's token after ``prefix`` that begins an expert's ``continuation``; ``None`` where that is not known.

    The whole text is tokenised anew. Where its tokens begin with ``prefix``, the next one is the answer. Where they do not
    (the policy's own tokens of ``prefix`` were not the tokenizer's, or the texts merge across the boundary), the
    continuation is tokenised alone, and counts only if prefix and it decode to the very same text. A token is complete
    once another follows it or the expert ended.

    Args:
        tokenizer: the policy's.
        prefix: the policy's own tokens so far.
        continuation: what the expert wrote next.
        ended: whether the expert ended its answer there; with nothing written that is the policy's end of sequence.
    """
    if HALF in continuation[-1:]:  # within a character: what comes next decides what this is
        continuation, ended = continuation.rstrip(HALF), False
    if not continuation:
        return tokenizer.eos_token_id if ended else None
    before = text_of(tokenizer, prefix)
    ids = _encode(tokenizer, before + continuation)
    rest = ids[len(prefix) :]
    if ids[: len(prefix)] != list(prefix):
        rest = _encode(tokenizer, continuation)
        if text_of(tokenizer, [*prefix, *rest]) != before + continuation:
            return None
    return rest[0] if rest and (len(rest) > 1 or ended) else None


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
