"""Converting text that an expert wrote into tokens of the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from errata.experts.queries import Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["REPLACEMENT", "Reply", "sampled_tokens", "text_of", "tokens_after"]

REPLACEMENT = "\ufffd"
"""The Unicode replacement character, to which a token decodes that ends within a character of several bytes."""


class Reply(NamedTuple):
    """One continuation written by an expert."""

    text: str
    ended: bool
    """Whether the expert ended its answer after ``text``; ``False`` if it was cut at a length limit."""


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens included, spaces not cleaned up."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def tokens_after(tokenizer: PreTrainedTokenizerBase, prefix: Sequence[int], reply: Reply) -> list[int]:
    """The policy's tokens that spell ``reply`` after ``prefix``, without a last one that further text could change.

    The whole text is tokenised again. If its tokens begin with ``prefix``, the rest is the result. If not (the policy split
    ``prefix`` differently, or the texts merge across the boundary), ``reply`` is tokenised alone, and used only if ``prefix``
    and the result decode to the same text. The last token is dropped, because further text could have extended it, unless
    the expert ended there; then the end-of-sequence token is appended.

    Args:
        tokenizer: the policy's.
        prefix: the policy's tokens so far.
        reply: the expert's continuation.
    Returns:
        Token ids; empty if they cannot be determined.
    """
    text, ended = reply
    if text.endswith(REPLACEMENT):  # the text ends within a character, which is not known
        text, ended = text.rstrip(REPLACEMENT), False
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


def sampled_tokens(
    tokenizer: PreTrainedTokenizerBase, query: Query, t: int, reply: Reply, most: int
) -> list[tuple[int, int]]:
    """The samples ``(state, token)`` of the expert's next token that a reply at state ``t`` contains.

    The first token is a sample at ``t``. Each further token is a sample at the next state, as long as all tokens before it
    equal the student's.

    Args:
        most: number of tokens used at most. Of a reply of n tokens, n - 2 are complete whatever they are, if the expert's
            tokens are the policy's; whether later ones are complete depends on what follows them, which biases the samples.
    """
    own = query.completion_ids
    found: list[tuple[int, int]] = []
    tokens = tokens_after(tokenizer, [*query.prompt_ids, *own[:t]], reply)
    for at, token in enumerate(tokens[:most], start=t):
        found.append((at, token))
        if at >= len(own) or token != own[at]:
            break
    return found


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
