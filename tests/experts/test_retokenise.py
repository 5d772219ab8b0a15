"""An expert's text becomes the policy's next token, or nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.experts.worlds import CHARACTERS, WORDS

from errata.experts.retokenise import next_token, text_of


def ids(*tokens):
    return [WORDS.convert_tokens_to_ids(t) for t in tokens]


def test_the_tokenizer_merges_as_these_cases_suppose():
    assert WORDS.tokenize("hello=12") == ["hello", "=", "12"]
    assert WORDS.tokenize("hellohel") == ["hello", "hel"]


@pytest.mark.parametrize(
    ("prefix", "continuation", "ended", "expected"),
    [
        # The whole text's tokens begin with the prefix's.
        (["hello", "="], "12=", False, "12"),
        ([], "hello=", False, "hello"),
        # The last token may still grow, unless the expert ended.
        (["hello", "="], "1", False, None),
        (["hello", "="], "1", True, "1"),
        # Nothing written: the end itself, or nothing yet.
        (["hello"], "", True, "<e>"),
        (["hello"], "", False, None),
        # The policy spelled its prefix in its own way; it goes on from where it is.
        (["h", "e", "l", "="], "12=", False, "12"),
        (["1"], "2=", False, "2"),
        # Merges across the boundary: "hel" + "lo" is one token to the tokenizer, but the policy already said "hel".
        (["hel"], "lo=", False, "lo"),
        # A special token as text is that token.
        (["hello"], "<p>=", False, "<p>"),
    ],
)
def test_next_token(prefix, continuation, ended, expected):
    found = next_token(WORDS, ids(*prefix), continuation, ended=ended)
    assert (None if found is None else WORDS.convert_ids_to_tokens(found)) == expected


def test_half_a_character_is_not_read():
    """The last byte of what was written may belong to a character that is not finished."""
    assert next_token(CHARACTERS, [], "a\ufffd", ended=True) is None
    assert next_token(CHARACTERS, [], "ab\ufffd", ended=False) == CHARACTERS.convert_tokens_to_ids("a")


class Spaced:
    """A tokenizer that puts a space before whatever it encodes, as SentencePiece ones may."""

    eos_token_id = 1

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(c) for c in " " + text]}

    def decode(self, ids, **settings):
        return "".join(map(chr, ids))


def test_a_continuation_that_would_change_the_text_does_not_count():
    prefix = [ord("x")]  # not what it would make of "x", so the continuation is tokenised alone: " 12" is not "12"
    assert next_token(Spaced(), prefix, "12", ended=True) is None


PIECES = ["h", "e", "l", "o", "1", "2", "=", "hel", "lo", "hello", "12"]


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.text("helo12=", min_size=1, max_size=9))
def test_the_token_begins_the_continuation(prefix, continuation):
    """However the policy cut its own text, the token put after it gives the text the expert wrote, or its beginning."""
    found = next_token(WORDS, ids(*prefix), continuation, ended=True)
    text = text_of(WORDS, ids(*prefix))
    assert found is not None
    assert (text + continuation).startswith(text_of(WORDS, [*ids(*prefix), found]))
    assert len(text_of(WORDS, [found])) > 0
