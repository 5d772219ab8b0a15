"""An expert's text is converted to samples of the policy's next token, or to none, however the tokens merge."""

import math
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.experts.worlds import CHARACTERS, WORDS

from errata.experts.queries import Query
from errata.experts.retokenize import Reply, sampled_tokens, text_of, tokens_after

END = WORDS.eos_token_id
PIECES = ["h", "e", "l", "o", "1", "2", "=", "hel", "lo", "hello", "12"]
LETTERS = st.text("helo12=", max_size=8)


def ids(*tokens):
    return [WORDS.convert_tokens_to_ids(t) for t in tokens]


def test_the_tokenizer_merges_as_these_cases_suppose():
    assert WORDS.tokenize("hello=12") == ["hello", "=", "12"]
    assert WORDS.tokenize("hellohel") == ["hello", "hel"]


@pytest.mark.parametrize(
    ("prefix", "text", "ended", "expected"),
    [
        # The whole text's tokens begin with the prefix's.
        (["hello", "="], "12=", False, ["12"]),
        ([], "hello==", False, ["hello", "="]),
        # The last token may still grow, unless the expert ended.
        (["hello", "="], "1", False, []),
        (["hello", "="], "1", True, ["1", "<e>"]),
        # Nothing written: the end itself, or nothing yet.
        (["hello"], "", True, ["<e>"]),
        (["hello"], "", False, []),
        # The policy spelled its prefix in its own way; it goes on from where it is.
        (["h", "e", "l", "="], "12=", False, ["12"]),
        (["1"], "2==", False, ["2", "="]),
        # Merges across the boundary: "hel" + "lo" is one token to the tokenizer, but the policy already said "hel".
        (["hel"], "lo=", False, ["lo"]),
        # A special token as text is that token.
        (["hello"], "<p>=", False, ["<p>"]),
    ],
)
def test_tokens_after_a_prefix(prefix, text, ended, expected):
    assert WORDS.convert_ids_to_tokens(tokens_after(WORDS, ids(*prefix), Reply(text, ended))) == expected


def test_half_a_character_is_not_read():
    """The last byte of what was written may belong to a character that is not finished."""
    assert tokens_after(CHARACTERS, [], Reply("a\ufffd", True)) == []
    assert tokens_after(CHARACTERS, [], Reply("ab\ufffd", False)) == [CHARACTERS.convert_tokens_to_ids("a")]


class Spaced:
    """A tokenizer that puts a space before whatever it encodes, as SentencePiece ones may."""

    eos_token_id = 1

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(c) for c in " " + text]}

    def decode(self, ids, **settings):
        return "".join(map(chr, ids))


def test_a_text_that_would_change_by_being_read_does_not_count():
    prefix = [ord("x")]  # not what it would make of "x", so the reply is tokenised alone: " 12" is not "12"
    assert tokens_after(Spaced(), prefix, Reply("12", True)) == []


@given(st.lists(st.sampled_from(PIECES), max_size=8), st.text("helo12=", min_size=1, max_size=9))
def test_the_tokens_spell_the_text(prefix, text):
    """However the policy cut its own text."""
    found = tokens_after(WORDS, ids(*prefix), Reply(text, True))
    assert found[-1] == END
    assert text_of(WORDS, [*ids(*prefix), *found[:-1]]) == text_of(WORDS, ids(*prefix)) + text
    cut = tokens_after(WORDS, ids(*prefix), Reply(text, False))
    assert cut == found[:-2]


def query_of(completion, prompt=("=",)):
    return Query("", tuple(ids(*prompt)), tuple(ids(*completion)), tuple(range(len(completion))), 0)


@pytest.mark.parametrize(
    ("completion", "at", "text", "ended", "expected"),
    [
        (("hel", "="), 0, "hello=", False, [(0, "hello")]),  # not the student's hel: no later state of the student
        (("hello", "="), 0, "hello==2", False, [(0, "hello"), (1, "=")]),
        (("hello", "="), 0, "hello", False, []),  # might go on
        (("hello", "="), 0, "hello", True, [(0, "hello"), (1, "<e>")]),
        (("=", "="), 1, "", True, [(1, "<e>")]),
        (("hel", "lo", "="), 1, "lo=1", False, [(1, "lo"), (2, "=")]),
        (("=",), 0, "==", True, [(0, "="), (1, "=")]),
    ],
)
def test_what_a_text_says_at_a_state_and_after_it(completion, at, text, ended, expected):
    found = sampled_tokens(WORDS, query_of(completion), at, Reply(text, ended), 2)
    assert [(t, WORDS.convert_ids_to_tokens(token)) for t, token in found] == expected


@pytest.mark.parametrize("most", [1, 2, 4, 8])
def test_only_so_many_tokens_count_as_are_whole_whatever_they_are(most):
    assert len(sampled_tokens(WORDS, query_of(("=",) * 9), 0, Reply("=" * 20, False), most)) == most


@given(LETTERS, LETTERS, LETTERS, st.booleans())
def test_draws_follow_the_student_until_they_leave_it(before, own, text, ended):
    prompt, completion = WORDS("=" + before)["input_ids"], WORDS(own)["input_ids"]
    query = Query("", tuple(prompt), tuple(completion), (), 0)
    for at in range(len(completion) + 1):
        begun = [*prompt, *completion[:at]]
        found = sampled_tokens(WORDS, query, at, Reply(text, ended), 50)
        assert [t for t, _ in found] == list(range(at, at + len(found)))
        assert [token for _, token in found] == tokens_after(WORDS, begun, Reply(text, ended))[: len(found)]
        assert all(token == completion[t] for t, token in found[:-1])
        whole = WORDS(WORDS.decode(begun) + text)["input_ids"]
        if whole[: len(begun)] == begun:  # read as one text where that is how it is read
            assert [*begun, *(token for _, token in found)] == [*whole, END][: len(begun) + len(found)]


def test_exactly_enumerated_draws_are_the_experts_distribution():
    """An expert that writes a, b or its end at random, four tokens at most: every draw counts with its probability."""
    chances = {"a": 0.5, "b": 0.3, "": 0.2}
    found = {0: Counter(), 1: Counter()}
    student = tuple(CHARACTERS("aab")["input_ids"])
    query = Query("", tuple(CHARACTERS("?")["input_ids"]), student, (0, 1), 0)
    for tokens in product(chances, repeat=4):
        chance = math.prod(chances[t] for t in tokens)
        ended = "" in tokens
        text = "".join(tokens[: tokens.index("")] if ended else tokens)
        for at, token in sampled_tokens(CHARACTERS, query, 0, Reply(text, ended), 2):
            found[at][CHARACTERS.convert_ids_to_tokens(token).replace(CHARACTERS.eos_token, "")] += chance
    for counts in found.values():
        total = sum(counts.values())
        assert {t: counts[t] / total for t in chances} == pytest.approx(chances)
