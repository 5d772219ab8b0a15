"""Verifiable instructions: the rows, and the judge that names each broken constraint."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.feedback.instructions import InstructionVerifier, broken, words_of
from errata.tasks import load, names, verifier
from errata.tasks.instructions import split_of

TASKS = tuple(f"instructions/{kind}" for kind in ("length", "include", "exclude", "order", "case", "json", "mixed"))
SCHEMA = ["problem_id", "prompt", "answer", "reference", "task", "constraints"]


@pytest.fixture(scope="module", params=TASKS)
def splits(request):
    return {split: load(request.param, split=split) for split in ("train", "test")}


def test_every_kind_is_a_task():
    assert tuple(n for n in names() if n.startswith("instructions/")) == TASKS


def test_rows_follow_the_schema_and_splits_never_overlap(splits):
    prompts = {}
    for split, rows in splits.items():
        assert rows.column_names == SCHEMA
        assert rows["problem_id"] == [f"{rows[0]['task']}/{split}/{i}" for i in range(len(rows))]
        prompts[split] = [row["prompt"][0]["content"] for row in rows]
        assert {split_of(p) for p in prompts[split]} == {split}
    assert (len(set(prompts["train"])), len(set(prompts["test"]))) == (512, 128)
    assert not set(prompts["train"]) & set(prompts["test"])


def test_the_references_keep_their_constraints(splits):
    for rows in splits.values():
        verdicts = verifier(rows[0]["task"])(completions=list(rows["reference"]), **rows.to_dict())
        assert {(v.score, v.feedback) for v in verdicts} == {(1.0, "")}


def test_what_the_prompt_says_is_what_is_checked(splits):
    """Every number, word, key and case of the constraints stands in the prompt, and every quoted word in the constraints."""
    for row in splits["train"]:
        prompt, constraints = row["prompt"][0]["content"], json.loads(row["constraints"])
        words = [
            w
            for c in constraints
            for key in ("words", "keys")
            for w in (c.get(key) if isinstance(c.get(key), list) else [])
        ]
        assert set(prompt.split('"')[1::2]) == set(words)
        for c in constraints:
            if c["kind"] == "length":
                assert f"exactly {c['words']} words" in prompt
            if c["kind"] == "case":
                assert {"upper": "capital letters", "lower": "small letters"}[c["case"]] in prompt


def test_rows_stay_the_same():
    assert load("instructions/length")[3]["prompt"][0]["content"] == LENGTH_3
    assert load("instructions/mixed", split="test")[5]["constraints"] == MIXED_5


LENGTH_3 = 'Write one sentence of exactly 12 words with the word "desk".'
MIXED_5 = (
    '[{"kind": "length", "words": 7}, {"kind": "include", "words": ["pen"]}, {"kind": "exclude", "words": ["and"]}, '
    '{"kind": "case", "case": "upper"}, {"kind": "sentences", "count": 1}]'
)


@pytest.mark.parametrize(
    ("text", "constraint", "told"),
    [
        ("One two three.", {"kind": "length", "words": 3}, []),
        ("It's a well-known dog.", {"kind": "length", "words": 3}, ["It has 4 words; it must have exactly 3."]),
        ("Dog", {"kind": "length", "words": 2}, ["It has 1 word; it must have exactly 2."]),
        ("The Dog ran.", {"kind": "include", "words": ["dog", "cat"]}, ['The word "cat" is missing.']),
        ("Dogs ran.", {"kind": "include", "words": ["dog"]}, ['The word "dog" is missing.']),
        ("The dog, THE cat.", {"kind": "exclude", "words": ["the", "a"]}, ['The word "the" must not be used.']),
        ("other", {"kind": "exclude", "words": ["the"]}, []),
        ("a b c", {"kind": "order", "words": ["a", "b", "c"]}, []),
        ("b a c", {"kind": "order", "words": ["a", "b", "c"]}, ['The word "b" must come after "a".']),
        ("b a b", {"kind": "order", "words": ["a", "b"]}, []),
        ("c b", {"kind": "order", "words": ["a", "b", "c"]}, ['The word "c" must come after "b".']),
        ("c", {"kind": "order", "words": ["a", "c"]}, []),  # a missing word is what `include` names
        ("A DOG 7!", {"kind": "case", "case": "upper"}, []),
        ("a dOg Ran", {"kind": "case", "case": "lower"}, ['"dOg" must be written in small letters.']),
        ("A dog.", {"kind": "case", "case": "upper"}, ['"dog" must be written in capital letters.']),
        ("One. Two!", {"kind": "sentences", "count": 1}, ["It has 2 sentences; it must have exactly 1."]),
        ("It costs 3.5 euros.", {"kind": "sentences", "count": 1}, []),
        ("One", {"kind": "sentences", "count": 1}, ["The last sentence has no full stop."]),
        ('{"a": 1, "b": 2}', {"kind": "json", "keys": ["b", "a"]}, []),
        (
            '{"a": 1, "c": 2}',
            {"kind": "json", "keys": ["a", "b"]},
            ['The key "b" is missing.', 'The key "c" must not be there.'],
        ),
        ("[1]", {"kind": "json", "keys": ["a"]}, ["It is JSON, but not an object."]),
        ('{"a": 1', {"kind": "json", "keys": ["a"]}, ["It is not JSON: Expecting ',' delimiter at character 8."]),
    ],
)
def test_each_broken_constraint_is_named(text, constraint, told):
    assert broken(text, constraint) == told


def judged(text, *constraints, **settings):
    return InstructionVerifier(**settings)(completions=[text], constraints=[json.dumps(constraints)])[0]


def test_how_much_is_said_and_scored():
    constraints = (
        {"kind": "length", "words": 2},
        {"kind": "include", "words": ["dog", "cat"]},
        {"kind": "sentences", "count": 1},
    )
    everything = judged("It ran away.", *constraints)
    assert everything.score == 0.0
    assert everything.feedback == (
        'It has 3 words; it must have exactly 2. The word "dog" is missing. The word "cat" is missing.'
    )
    assert (everything.kind, everything.leaks_answer) == ("constraints", False)
    assert everything.info == {"broken": ["length", "include"]}
    assert judged("It ran away.", *constraints, feedback="first").feedback == "It has 3 words; it must have exactly 2."
    assert judged("It ran away.", *constraints, feedback="bit").feedback == ""
    assert judged("It ran away.", *constraints, partial=True).score == pytest.approx(1 / 3)
    assert judged("Dog cat.", *constraints, partial=True).score == 1.0


def test_no_answer_keeps_no_constraint():
    for text in ("", "  ", "<think>The"):
        verdict = judged(text, {"kind": "exclude", "words": ["the"]})
        assert (verdict.score, verdict.feedback, verdict.kind) == (0.0, "There is no answer.", "format")
    assert judged("", {"kind": "exclude", "words": ["the"]}, feedback="bit").feedback == ""


@given(
    st.text(),
    st.sampled_from(
        [{"kind": "json", "keys": ["a"]}, {"kind": "sentences", "count": 1}, {"kind": "case", "case": "upper"}]
    ),
)
def test_no_text_breaks_the_judge(text, constraint):
    verdict = judged(text, constraint)
    assert verdict.score == float(not verdict.feedback)


@given(st.lists(st.text("abcxyz", min_size=1, max_size=4), max_size=8))
def test_words_are_counted_as_they_were_joined(words):
    assert words_of(" ".join(words)) == words
    assert broken(", ".join(words), {"kind": "length", "words": len(words)}) == []


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="feedback: 'some' is none of all, first, bit"):
        verifier("instructions/length", feedback="some")
    with pytest.raises(ValueError, match="reads the column 'constraints'"):
        verifier("instructions/length")(completions=["a"])
    with pytest.raises(ValueError, match="'rhyme' is none of the kinds length, sentences"):
        broken("a", {"kind": "rhyme"})
    with pytest.raises(ValueError, match="did you mean 'instructions/length'"):
        load("instructions/lenght")
    with pytest.raises(ValueError, match="split: instructions/length has train and test, not 'dev'"):
        load("instructions/length", split="dev")
    with pytest.raises(ValueError, match="path: instructions/length is made, not read"):
        load("instructions/length", path="x")
