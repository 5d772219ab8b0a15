"""A run's own rows: training questions that the test split has are left out, and counted."""

import logging

import pytest
from datasets import Dataset

from errata.recipe.rows import checked, without_leaks


def rows(*prompts):
    return Dataset.from_dict({"prompt": list(prompts)})


def chat(text):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def test_training_questions_of_the_test_split_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        kept = without_leaks(rows(chat("a b"), chat("c"), chat("d")), rows(chat("a  b"), chat("e")), "mine")
    assert [prompt[-1]["content"] for prompt in kept["prompt"]] == ["c", "d"]
    assert caplog.messages == ["mine: left out 1 of 3 training rows whose question is in the test split"]


def test_rows_that_share_nothing_are_as_they_were(caplog):
    train = rows("a", "b")
    assert without_leaks(train, rows("c"), "mine") is train
    assert not caplog.messages


def test_rows_that_are_all_in_the_test_split_are_refused():
    with pytest.raises(ValueError, match="mine: every training question is in the test split; give other rows for one"):
        without_leaks(rows("a", "a "), rows("a"), "mine")


def test_the_same_prompt_twice_is_two_problems():
    found = checked(rows("a", "b", "a", "a"), "mine")["problem_id"]
    assert len(set(found)) == 4
    assert [found[2], found[3]] == [f"{found[0]}-2", f"{found[0]}-3"]
    assert found[:2] == checked(rows("a", "b"), "mine")["problem_id"]


def test_a_named_problem_twice_is_an_error_but_in_a_mixture():
    twice = Dataset.from_dict({"prompt": ["a", "b", "a"], "problem_id": ["x", "y", "x"]})
    with pytest.raises(
        ValueError, match="mine: row 2, column 'problem_id': 'x' is row 0's, too; give every row its own"
    ):
        checked(twice, "mine")
    assert len(checked(twice, "mine", strict=False)) == 2
    assert len(checked(twice, "mine", repeated=True)) == 3
