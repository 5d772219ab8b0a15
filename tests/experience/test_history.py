"""The feedback history: only earlier steps are seen, its bounds, and exact resumption."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.experience import FeedbackHistory
from errata.records import Earlier, strip_thinking


def filled(*entries, **arguments):
    history = FeedbackHistory(**arguments)
    for name, text, feedback, step in entries:
        history.add(name, text, feedback, step)
    return history


def attempts(history, name="a"):
    return [entry.attempt for entry in history.earlier(name)]


def test_only_attempts_of_steps_before_the_present_one_are_earlier():
    history = filled(("a", "x", "no", 3), ("a", "y", "nor that", 3))
    assert history.earlier("a") == ()
    history.begin(3)
    assert history.earlier("a") == ()
    history.begin(4)
    assert history.earlier("a") == (Earlier("x", "no", False, 3), Earlier("y", "nor that", False, 3))
    history.add("a", "z", "no", 4)
    assert attempts(history) == ["x", "y"]


def test_the_present_step_pushes_nothing_out():
    history = filled(("a", "x", "no", 0), ("a", "y", "no", 0), per_problem=2)
    for text in "pqr":
        history.add("a", text, "no", 1)
        assert attempts(history) == ["x", "y"]
    history.begin(2)
    assert attempts(history) == ["q", "r"]  # the newest, oldest first


def test_of_one_text_the_newest_stays_whatever_it_thought():
    history = filled(
        ("a", "<think>1</think>x", "no", 0), ("a", "y", "no", 1), ("a", "<think>2</think>x", "still no", 2)
    )
    history.begin(3)
    assert history.earlier("a") == (Earlier("y", "no", False, 1), Earlier("x", "still no", False, 2))
    kept = filled(("a", "<think>1</think>x", "no", 0), ("a", "<think>2</think>x", "no", 1), keep_thinking=True)
    kept.begin(2)
    assert attempts(kept) == ["<think>2</think>x"]


def test_what_nobody_spoke_about_is_not_stored_and_leaks_are_known():
    history = filled(("a", "x", " \n", 0), ("a", "y" * 5, "n" * 6, 0), max_characters=10)
    history.add("a", "z", "it is 4", 0, leaks_answer=True)
    history.begin(1)
    assert history.earlier("a") == (Earlier("z", "it is 4", True, 0),)


def test_the_problem_longest_without_an_attempt_is_forgotten():
    history = filled(*((name, "x", "no", step) for step, name in enumerate("abac")), max_problems=2)
    history.begin(9)
    assert [attempts(history, name) for name in "abc"] == [["x"], [], ["x"]]
    small = filled(("a", "xxx", "no", 0), ("b", "yyy", "no", 1), max_characters=9)
    small.begin(2)
    assert [attempts(small, name) for name in "ab"] == [[], ["yyy"]]
    assert small.metrics() == {"problems": 1, "attempts": 1}
    assert len(small) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("", "x", "no", 5), "problem_id"),
        (("a", None, "no", 5), "text"),
        (("a", "x", None, 5), "feedback"),
        (("a", "x", "no", -1), "step"),
        (("a", "x", "no", 0.5), "step"),
        (("a", "x", "no", 4), "step"),
    ],
)
def test_bad_additions_name_the_argument(arguments, named):
    history = FeedbackHistory()
    history.begin(5)
    with pytest.raises(ValueError, match=rf"^{named}:"):
        history.add(*arguments)
    history.begin(6)
    assert len(history) == 0


@pytest.mark.parametrize("name", ["per_problem", "max_problems", "max_characters"])
def test_bad_settings_name_the_argument(name):
    with pytest.raises(ValueError, match=rf"^{name}:"):
        FeedbackHistory(**{name: 0})


def test_another_classes_state_is_refused():
    with pytest.raises(ValueError, match="state: has no 'problems'"):
        FeedbackHistory().load_state_dict({})


def test_a_smaller_history_may_load_a_larger_ones_state():
    large = filled(*(("a", text, "no", step) for step, text in enumerate("vwxyz")))
    small = FeedbackHistory(per_problem=2)
    small.load_state_dict(large.state_dict())
    small.begin(9)
    assert attempts(small) == ["y", "z"]


names = st.sampled_from("abcd")
words = st.text("xyz", max_size=4)
operations = st.lists(
    st.tuples(names, st.sampled_from(["", "<think>x</think>"]), words, words, st.integers(0, 1)), max_size=40
)
histories = st.builds(
    lambda *settings: (
        lambda: FeedbackHistory(
            settings[0], keep_thinking=settings[1], max_problems=settings[2], max_characters=settings[3]
        )
    ),
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 40),
)


def replay(history, items, step=0):
    for name, thinking, text, feedback, advance in items:
        step += advance
        history.add(name, thinking + text, feedback, step)
        held = [history.earlier(n) for n in "abcd"]
        assert all(e.step < step for entries in held for e in entries)
        assert all(len(entries) <= history.per_problem for entries in held)
        assert all(len({strip_thinking(e.attempt) for e in entries}) == len(entries) for entries in held)
        assert len(history) == sum(map(bool, held)) <= history.max_problems
        assert sum(len(e.attempt) + len(e.feedback) for entries in held for e in entries) <= history.max_characters
    return step


@settings(deadline=None)
@given(operations, st.integers(1, 3))
def test_it_is_the_naive_rule(items, per_problem):
    history = FeedbackHistory(per_problem)
    step = replay(history, items)
    history.begin(step + 1)
    for name in "abcd":
        told = [(t, f) for n, _, t, f, _ in items if n == name and f.strip()]
        newest = [(t, f) for i, (t, f) in enumerate(told) if all(other != t for other, _ in told[i + 1 :])]
        assert [(e.attempt, e.feedback) for e in history.earlier(name)] == newest[-per_problem:]


@settings(deadline=None)
@given(histories, operations, st.data())
def test_resuming_anywhere_equals_never_having_stopped(make, items, data):
    cut = data.draw(st.integers(0, len(items)))
    whole, before, after = make(), make(), make()
    step = replay(before, items[:cut])
    after.load_state_dict(json.loads(json.dumps(before.state_dict(), sort_keys=True)))
    replay(after, items[cut:], step)
    replay(whole, items)
    assert json.dumps(whole.state_dict(), sort_keys=True) == json.dumps(after.state_dict(), sort_keys=True)
