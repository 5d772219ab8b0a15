"""An expert's text as draws of the policy's next token, whatever the text and however the tokens merge."""

import math
from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.experts.worlds import CHARACTERS, WORDS

from errata.experts.answers import Question
from errata.experts.reading import Reading, Reply

END = WORDS.eos_token_id
LETTERS = st.text("helo12=", max_size=8)


def ids(*tokens):
    return tuple(WORDS.convert_tokens_to_ids(t) for t in tokens)


def asked(completion, prompt=("1",)):
    return Question("", ids(*prompt), ids(*completion), tuple(range(len(completion))), 0)


def drawn(completion, at, text, ended=False, answer_tokens=4):
    (found,) = Reading(WORDS, answer_tokens).draws(asked(completion), [(at, Reply(text, ended))])
    return [(t, WORDS.convert_ids_to_tokens(token)) for t, token in found]


@pytest.mark.parametrize(
    ("completion", "at", "text", "ended", "expected"),
    [
        (("hel", "="), 0, "hello=", False, [(0, "hello")]),  # not the student's hel: no later state of the student
        (("hello", "="), 0, "hello==2", False, [(0, "hello"), (1, "=")]),
        (("hello", "="), 0, "hello", False, []),  # might go on
        (("hello", "="), 0, "hello", True, [(0, "hello"), (1, "<e>")]),
        (("=", "="), 1, "", True, [(1, "<e>")]),
        (("hel", "="), 1, "lo=", False, []),  # the policy reads hel + lo as hello
        (("hel", "="), 1, "o=e", False, [(1, "o")]),
        (("=",), 0, "2=", False, []),  # after the prompt's 1 it is 12
    ],
)
def test_what_a_text_says_at_a_state(completion, at, text, ended, expected):
    assert drawn(completion, at, text, ended) == expected


def test_only_so_many_tokens_count_as_are_whole_whatever_they_are():
    for answer_tokens, n in ((3, 1), (4, 2), (6, 4), (10, 5)):
        assert len(drawn(("=",) * 8, 0, "======", answer_tokens=answer_tokens)) == n


@given(LETTERS, LETTERS, LETTERS, st.booleans())
def test_draws_are_what_the_policy_reads_in_the_whole_text(before, own, text, ended):
    """By encoding prompt, attempt and continuation at one go."""
    prompt, completion = WORDS("=" + before)["input_ids"], WORDS(own)["input_ids"]
    question = Question("", tuple(prompt), tuple(completion), (), 0)
    reading = Reading(WORDS, 50)
    for at in range(len(completion) + 1):
        begun = [*prompt, *completion[:at]]
        whole = WORDS(WORDS.decode(begun) + text)["input_ids"] + ([END] if ended else [])
        (found,) = reading.draws(question, [(at, Reply(text, ended))])
        assert [t for t, _ in found] == list(range(at, at + len(found)))
        if found:
            assert [*begun, *(token for _, token in found)] == whole[: len(begun) + len(found)]
            assert all(token == completion[t] for t, token in found[:-1])
        else:
            assert whole[: len(begun)] != begun or len(whole) - len(begun) <= (not ended)


@given(LETTERS, st.lists(st.sampled_from("helo12="), max_size=6))
def test_a_state_is_worth_asking_while_its_text_is_read_as_its_tokens(before, own):
    prompt, completion = WORDS("=" + before)["input_ids"], list(ids(*own))
    question = Question("", tuple(prompt), tuple(completion), (), 0)
    asked = list(range(len(completion) + 1))
    worth = Reading(WORDS, 4).readable(question, asked)
    assert worth == asked[: len(worth)]
    for at in set(asked) - set(worth):  # nothing that is left out could have been a draw
        for text, ended in product(["", "=", "he=", "l2", "o=", "2=", "1="], [False, True]):
            assert Reading(WORDS, 4).draws(question, [(at, Reply(text, ended))]) == [[]]


def test_exactly_enumerated_draws_are_the_experts_distribution():
    """An expert that writes a, b or its end at random, four tokens at most: every draw counts with its probability."""
    chances = {"a": 0.5, "b": 0.3, "": 0.2}
    found = {0: Counter(), 1: Counter()}
    student = tuple(CHARACTERS("aab")["input_ids"])
    question = Question("", tuple(CHARACTERS("?")["input_ids"]), student, (0, 1), 0)
    reading = Reading(CHARACTERS, 4)
    for tokens in product(chances, repeat=4):
        chance = math.prod(chances[t] for t in tokens)
        ended = "" in tokens
        text = "".join(tokens[: tokens.index("")] if ended else tokens)
        (draws,) = reading.draws(question, [(0, Reply(text, ended))])
        for at, token in draws:
            found[at][CHARACTERS.convert_ids_to_tokens(token).replace(CHARACTERS.eos_token, "")] += chance
    for counts in found.values():
        total = sum(counts.values())
        assert {t: counts[t] / total for t in chances} == pytest.approx(chances)
