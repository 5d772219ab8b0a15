"""The success buffer: both published forms worked by hand, its bounds, its counters, and exact resumption."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.experience import Success, SuccessBuffer
from errata.records import strip_thinking


def texts(buffer, problem_id="a"):
    return [entry.text for entry in buffer.entries(problem_id)]


def filled(*entries, **arguments):
    buffer = SuccessBuffer(**arguments)
    for text, reward, step in entries:
        buffer.add("a", text, reward, step)
    return buffer


# -- released ------------------------------------------------------------------------------------------------------


def test_released_keeps_four_by_reward_then_step():
    buffer = filled(("v", 1.0, 1), ("w", 0.5, 9), ("x", 1.0, 3), ("y", 0.7, 2), ("z", 0.6, 4))
    assert buffer.per_problem == 4
    assert buffer.entries("a") == (
        Success("x", 1.0, 3),
        Success("v", 1.0, 1),
        Success("y", 0.7, 2),
        Success("z", 0.6, 4),
    )
    assert buffer.evictions == 1  # "w" gave way
    buffer.add("a", "worse", 0.1, 99)
    assert "worse" not in texts(buffer)
    assert buffer.evictions == 1  # what was never stored is not evicted


def test_released_prefer_recent_ranks_by_step_then_reward():
    buffer = filled(("v", 1.0, 1), ("w", 0.5, 9), ("x", 1.0, 3), ("y", 0.7, 2), ("z", 0.6, 9), prefer_recent=True)
    assert texts(buffer) == ["z", "w", "x", "y"]


def test_released_copies_keep_the_better_or_newer():
    buffer = filled(("x", 0.5, 1), ("x", 0.5, 4))
    assert buffer.entries("a") == (Success("x", 0.5, 4),)  # newer
    buffer.add("a", "x", 0.4, 9)
    assert buffer.entries("a") == (Success("x", 0.5, 4),)  # newer, but worse
    buffer.add("a", "x", 1.0, 2)
    assert buffer.entries("a") == (Success("x", 1.0, 2),)  # better
    assert buffer.evictions == 0
    assert buffer.metrics()["texts"] == 1


def test_released_draw_is_the_best_and_repeats():
    buffer = filled(("old", 1.0, 1), ("new", 1.0, 2), ("poor", 0.5, 3))
    rng = random.Random(0)
    before = rng.getstate()
    assert {buffer.draw("a", rng) for _ in range(20)} == {"new"}
    assert buffer.draw("a", rng, exclude=["new"]) == "old"
    assert rng.getstate() == before
    assert buffer.top("a", 2) == ["new", "old"]
    assert buffer.top("a", 9, exclude={"old"}) == ["new", "poor"]


def test_too_many_problems_forget_the_one_whose_best_is_lowest():
    buffer = SuccessBuffer(max_problems=2)
    buffer.add("a", "x", 0.9, 1)
    buffer.add("a", "y", 0.1, 1)
    buffer.add("b", "x", 0.8, 5)
    buffer.add("b", "y", 0.7, 5)
    buffer.add("c", "x", 1.0, 2)
    assert [bool(buffer.entries(name)) for name in "abc"] == [True, False, True]
    assert buffer.evictions == 2
    buffer.add("d", "x", 0.9, 2)  # equal best reward: the older problem goes
    assert [bool(buffer.entries(name)) for name in "acd"] == [False, True, True]
    assert len(buffer) == 2


# -- paper ---------------------------------------------------------------------------------------------------------


def test_paper_full_gives_way_to_strictly_better_only():
    buffer = filled(("u", 0.5, 1), ("v", 0.5, 2), ("w", 1.0, 3), kind="paper")
    assert buffer.per_problem == 3
    buffer.add("a", "equal", 0.5, 9)
    assert sorted(texts(buffer)) == ["u", "v", "w"]
    buffer.add("a", "better", 0.6, 9)
    assert sorted(texts(buffer)) == ["better", "v", "w"]  # "u", the older of the two lowest, went
    assert buffer.evictions == 1


def test_paper_freezes_under_bit_rewards_and_prefer_recent_frees_it():
    entries = [(name, 1.0, step) for step, name in enumerate("abcdef")]
    assert sorted(texts(filled(*entries, kind="paper"))) == ["a", "b", "c"]
    freed = filled(*entries, kind="paper", prefer_recent=True)
    assert sorted(texts(freed)) == ["d", "e", "f"]
    assert freed.evictions == 3
    freed.add("a", "worse", 0.5, 99)
    assert sorted(texts(freed)) == ["d", "e", "f"]


@pytest.mark.parametrize("rng", [random.Random(0), np.random.default_rng(0)])
def test_paper_draw_is_uniform(rng):
    buffer = filled(("u", 0.2, 1), ("v", 0.5, 2), ("w", 1.0, 3), kind="paper")
    counts = Counter(buffer.draw("a", rng) for _ in range(3000))
    assert set(counts) == {"u", "v", "w"}
    assert all(900 < n < 1100 for n in counts.values())  # 1000 expected, standard deviation 26
    assert {buffer.draw("a", rng, exclude=("u", "w")) for _ in range(20)} == {"v"}


def test_paper_waits_one_epoch_and_waiting_is_not_a_miss():
    buffer = filled(("u", 1.0, 1), kind="paper")
    rng = random.Random(0)
    assert buffer.draw("a", rng, epoch=0.99) is None
    assert (buffer.hits, buffer.misses) == (0, 0)
    assert buffer.draw("a", rng, epoch=1.0) == "u"
    assert buffer.draw("a", rng) == "u"
    assert filled(("u", 1.0, 1)).draw("a", rng, epoch=0.0) == "u"  # released does not wait
    assert filled(("u", 1.0, 1), kind="paper", start_epoch=3).draw("a", rng, epoch=2.5) is None


# -- both ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["released", "paper"])
def test_hits_and_misses(kind):
    buffer = filled(("x", 1.0, 0), kind=kind)
    rng = random.Random(0)
    assert buffer.draw("a", rng) == "x"
    assert buffer.draw("a", rng, exclude=["x"]) is None
    assert buffer.draw("a", rng, exclude="x") is None  # a bare string is one text
    assert buffer.draw("b", rng) is None
    assert buffer.metrics() == {"problems": 1, "texts": 1, "hits": 1, "misses": 3, "evictions": 0}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("B", "B"),
        (" untouched \n", " untouched \n"),
        ("<think>hm</think>\n\nB", "B"),
        ("<think>a\nb</think> B <think>c</think> C", "B  C"),
        ("the prompt opened it</think> B", "B"),
        ("B <think>cut by the length limit", "B"),
        ("<think>only thinking", ""),
    ],
)
def test_thinking_is_stripped(text, kept):
    assert strip_thinking(text) == kept
    buffer = filled((text, 1.0, 0))
    assert texts(buffer) == ([kept] if kept else [])


def test_the_responses_own_text_is_excluded_whatever_it_thought():
    buffer = filled(("<think>one way</think>B", 1.0, 0), ("<think>another</think>B", 1.0, 1))
    assert buffer.entries("a") == (Success("B", 1.0, 1),)
    assert buffer.draw("a", random.Random(0), exclude=["<think>a third</think>\nB"]) is None


def test_thinking_is_kept_on_request_and_still_not_compared():
    buffer = filled(("<think>one way</think>B", 1.0, 0), ("<think>another</think>B", 1.0, 1), keep_thinking=True)
    assert texts(buffer) == ["<think>another</think>B"]
    assert buffer.draw("a", random.Random(0), exclude=["B"]) is None
    buffer.add("a", "<think>nothing said", 1.0, 2)
    assert len(texts(buffer)) == 1


@pytest.mark.parametrize("kind", ["released", "paper"])
def test_several_drawn_are_different_entries_and_one_draw(kind):
    buffer = filled(("u", 0.2, 1), ("v", 0.5, 2), ("w", 1.0, 3), kind=kind)
    drawn = [buffer.draw_several("a", 2, random.Random(seed), exclude=["v"]) for seed in range(20)]
    assert {tuple(found) for found in drawn} == ({("w", "u")} if kind == "released" else {("u", "w"), ("w", "u")})
    assert sorted(buffer.draw_several("a", 9, random.Random(0))) == ["u", "v", "w"]
    assert buffer.draw_several("b", 2, random.Random(0)) == []
    assert (buffer.hits, buffer.misses) == (21, 1)
    with pytest.raises(ValueError, match=r"^k: must be at least 1"):
        buffer.draw_several("a", 0, random.Random(0))


def test_drawing_one_of_several_is_drawing_one():
    buffer = filled(("u", 0.2, 1), ("v", 0.5, 2), ("w", 1.0, 3), kind="paper")
    for seed in range(20):
        one, several = random.Random(seed), random.Random(seed)
        assert [buffer.draw("a", one)] == buffer.draw_several("a", 1, several)
        assert one.random() == several.random()


def test_characters_are_bounded():
    buffer = SuccessBuffer(max_characters=10)
    buffer.add("a", "x" * 6, 0.5, 0)
    buffer.add("b", "y" * 11, 1.0, 1)  # longer than the whole buffer
    assert [len(buffer.entries(name)) for name in "ab"] == [1, 0]
    buffer.add("b", "y" * 5, 1.0, 1)
    assert [len(buffer.entries(name)) for name in "ab"] == [0, 1]
    assert buffer.evictions == 1
    buffer.add("c", "z" * 5, 1.0, 1)
    assert len(buffer) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("", "x", 1.0, 0), "problem_id"),
        (("a", None, 1.0, 0), "text"),
        (("a", "x", math.nan, 0), "reward"),
        (("a", "x", None, 0), "reward"),
        (("a", "x", 1.0, -1), "step"),
        (("a", "x", 1.0, 0.5), "step"),
    ],
)
def test_bad_additions_name_the_argument(arguments, named):
    buffer = SuccessBuffer()
    with pytest.raises(ValueError, match=rf"^{named}:"):
        buffer.add(*arguments)
    assert len(buffer) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"kind": "both"}, "kind"),
        ({"per_problem": 0}, "per_problem"),
        ({"start_epoch": -1}, "start_epoch"),
        ({"max_problems": 0}, "max_problems"),
        ({"max_characters": 0}, "max_characters"),
    ],
)
def test_bad_settings_name_the_argument(arguments, named):
    with pytest.raises(ValueError, match=rf"^{named}:"):
        SuccessBuffer(**arguments)


def test_a_state_of_the_other_kind_is_refused():
    with pytest.raises(ValueError, match="kind='paper'"):
        SuccessBuffer().load_state_dict(SuccessBuffer(kind="paper").state_dict())


def test_a_smaller_buffer_may_load_a_larger_ones_state():
    large = filled(("v", 1.0, 1), ("w", 0.5, 9), ("x", 1.0, 3))
    small = SuccessBuffer(per_problem=2)
    small.load_state_dict(large.state_dict())
    assert texts(small) == ["x", "v"]


buffers = st.builds(
    lambda kind, per_problem, recent, problems, characters: (
        lambda: SuccessBuffer(
            per_problem, kind=kind, prefer_recent=recent, max_problems=problems, max_characters=characters
        )
    ),
    st.sampled_from(["released", "paper"]),
    st.integers(1, 4),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 40),
)
names = st.sampled_from("abcdef")
words = st.text("xyz", max_size=5)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), names, words, st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5)),
        st.tuples(st.just("draw"), names, st.sets(words, max_size=3)),
    ),
    max_size=40,
)


def replay(buffer, items, rng):
    drawn = []
    for item in items:
        if item[0] == "add":
            buffer.add(*item[1:])
        else:
            drawn.append(buffer.draw(item[1], rng, exclude=item[2]))
            assert drawn[-1] is None or drawn[-1] not in item[2]
        assert len(buffer) <= buffer.max_problems
        held = [buffer.entries(name) for name in "abcdef"]
        assert all(len(entries) <= buffer.per_problem for entries in held)
        assert sum(len(entry.text) for entries in held for entry in entries) <= buffer.max_characters
        if buffer.kind == "released":
            assert all(len({entry.text for entry in entries}) == len(entries) for entries in held)
    return drawn


@settings(deadline=None)
@given(buffers, operations)
def test_bounds_hold_after_every_operation_and_no_excluded_text_is_drawn(make, items):
    replay(make(), items, random.Random(0))


def naive_released(additions, per_problem, max_problems):
    """The released rules, spelled out without any of the buffer's shortcuts."""
    store = {}
    for name, text, reward, step in additions:
        if not text:
            continue
        rows = [row for row in store.get(name, []) if row[0] != text]
        copies = [row for row in store.get(name, []) if row[0] == text]
        store[name] = [*rows, max([*copies, (text, reward, step)], key=lambda row: row[1:])]
        store[name] = sorted(store[name], key=lambda row: (-row[1], -row[2]))[:per_problem]
        if len(store) > max_problems:
            del store[min(sorted(store), key=lambda other: max(row[1:] for row in store[other]))]
    return {name: {row[1:] for row in rows} for name, rows in store.items()}


@settings(deadline=None)
@given(
    st.lists(st.tuples(names, words, st.sampled_from([0.5, 1.0]), st.integers(0, 5)), max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_released_is_the_naive_rule(additions, per_problem, max_problems):
    buffer = SuccessBuffer(per_problem, max_problems=max_problems)
    for addition in additions:
        buffer.add(*addition)
    held = {name: {entry[1:] for entry in buffer.entries(name)} for name in "abcdef" if buffer.entries(name)}
    assert held == naive_released(additions, per_problem, max_problems)


def test_the_weakest_is_found_after_any_number_of_improvements():
    buffer = SuccessBuffer(max_problems=3)
    for step in range(1000):
        buffer.add("abc"[step % 3], f"text {step}", 1.0, step)  # "a" was improved last
    assert len(buffer._weakest) <= 107
    buffer.add("d", "x", 1.0, 1000)
    assert [bool(buffer.entries(name)) for name in "abcd"] == [True, False, True, True]


@settings(deadline=None)
@given(buffers, operations)
def test_what_was_offered_is_held_or_was_evicted_or_refused(make, items):
    buffer = make()
    replay(buffer, items, random.Random(0))
    offered = sum(item[0] == "add" for item in items)
    assert buffer.metrics()["texts"] + buffer.evictions <= offered
    assert buffer.hits + buffer.misses == len(items) - offered


@settings(deadline=None)
@given(buffers, operations, st.data())
def test_resuming_anywhere_equals_never_having_stopped(make, items, data):
    cut = data.draw(st.integers(0, len(items)))
    whole, before, after = make(), make(), make()
    rng_whole, rng_parts = random.Random(1), random.Random(1)
    drawn = replay(before, items[:cut], rng_parts)
    after.load_state_dict(json.loads(json.dumps(before.state_dict(), sort_keys=True)))
    drawn += replay(after, items[cut:], rng_parts)
    assert replay(whole, items, rng_whole) == drawn
    assert json.dumps(whole.state_dict(), sort_keys=True) == json.dumps(after.state_dict(), sort_keys=True)


def test_draws_begin_at_the_later_of_first_step_and_first_epoch():
    """The release: from step max(start_step, ceil(start_epoch * steps of an epoch)). Here an epoch has 4 steps."""
    for start_step, start_epoch, first in [
        (0, 0.0, 0),
        (3, 0.0, 3),
        (0, 1.5, 6),
        (0, 1.6, 7),
        (7, 1.5, 7),
        (5, 2.0, 8),
    ]:
        buffer = SuccessBuffer(start_step=start_step, start_epoch=start_epoch)
        buffer.add("a", "right", 1.0, 0)
        drawn = [buffer.draw("a", random.Random(0), epoch=step / 4, step=step) is not None for step in range(10)]
        assert drawn.index(True) == first
        assert all(drawn[first:])
        assert (buffer.hits, buffer.misses) == (10 - first, 0)
