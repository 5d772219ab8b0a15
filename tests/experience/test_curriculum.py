"""The curriculum's switch by step and by plateau, worked by hand; it never switches back."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.experience import Curriculum


def stages(curriculum, rates, start=0):
    seen = []
    for step, rate in enumerate(rates, start):
        curriculum.observe(step, rate)
        seen.append(curriculum.stage)
    return seen


def test_switches_at_the_step():
    assert stages(Curriculum(3), [0.1] * 6) == [1, 1, 1, 2, 2, 2]
    assert stages(Curriculum(), [0.1] * 61) == [1] * 60 + [2]
    assert Curriculum(0).stage == 2
    late = Curriculum(3)
    late.observe(7, None)  # a run that does not observe every step switches at the first one after
    assert (late.stage, late.switched_at) == (2, 7)


def test_switches_at_the_plateau():
    # running means of two: -, .1, .2, .3, .35, .35, .35: best .35 at index 4, then two steps without gain
    rates = [0.1, 0.1, 0.3, 0.3, 0.4, 0.3, 0.4, 0.9, 0.9]
    curriculum = Curriculum(None, window=2, patience=2, min_gain=0.01)
    assert stages(curriculum, rates) == [1, 1, 1, 1, 1, 1, 2, 2, 2]
    assert curriculum.switched_at == 6


def test_the_default_plateau_needs_thirty_steps_and_waits_while_learning_goes_on():
    assert stages(Curriculum(None), [0.2] * 31) == [1] * 29 + [2] * 2
    assert stages(Curriculum(None), [0.001 * step for step in range(300)]) == [1] * 300
    climbs_then_rests = [min(0.01 * step, 0.6) for step in range(120)]
    switched = stages(Curriculum(None), climbs_then_rests).index(2)
    assert 60 + 20 <= switched <= 60 + 10 + 20


def test_unjudged_steps_do_not_count_as_flat():
    assert stages(Curriculum(None, window=1, patience=2), [0.2, None, None, None, 0.2, 0.2]) == [1, 1, 1, 1, 1, 2]


def test_resets_fall_due_after_warm_up_only():
    curriculum = Curriculum(2, reset_every=3)
    resets = []
    for step in range(10):
        curriculum.observe(step, 0.5)
        resets.append(curriculum.resets)
    assert resets == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert Curriculum(0).resets == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"switch_step": -1}, "switch_step"),
        ({"switch_step": "auto"}, "switch_step"),
        ({"reset_every": 0}, "reset_every"),
        ({"window": 0}, "window"),
        ({"patience": 0}, "patience"),
        ({"min_gain": math.nan}, "min_gain"),
    ],
)
def test_bad_settings_name_the_argument(arguments, named):
    with pytest.raises(ValueError, match=rf"^{named}:"):
        Curriculum(**arguments)


def test_bad_observations_name_the_argument():
    curriculum = Curriculum()
    curriculum.observe(4, 0.5)
    with pytest.raises(ValueError, match="step: 3 lies before step 4"):
        curriculum.observe(3, 0.5)
    for rate in (math.nan, 1.5, -0.1):
        with pytest.raises(ValueError, match="pass_rate:"):
            curriculum.observe(5, rate)
    with pytest.raises(ValueError, match="state: has no 'switched_at'"):
        curriculum.load_state_dict({})


curricula = st.builds(
    lambda step, reset, window, patience, gain: (
        lambda: Curriculum(step, reset_every=reset, window=window, patience=patience, min_gain=gain)
    ),
    st.one_of(st.none(), st.integers(0, 20)),
    st.one_of(st.none(), st.integers(1, 5)),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.01, 0.3]),
)
rates = st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=30)


@settings(deadline=None)
@given(curricula, rates)
def test_never_back(make, observed):
    seen = stages(make(), observed)
    assert seen == sorted(seen)


@settings(deadline=None)
@given(curricula, rates, st.data())
def test_resuming_anywhere_equals_never_having_stopped(make, observed, data):
    cut = data.draw(st.integers(0, len(observed)))
    whole, before, after = make(), make(), make()
    seen = stages(before, observed[:cut])
    after.load_state_dict(json.loads(json.dumps(before.state_dict(), sort_keys=True)))
    assert stages(whole, observed) == seen + stages(after, observed[cut:], start=cut)
    assert json.dumps(whole.state_dict()) == json.dumps(after.state_dict())
    assert whole.resets == after.resets


def test_resets_are_counted_from_the_end_of_the_transition():
    """The release: never up to warm-up + transition, then every so many steps from there. Warm-up 3, transition 4, every 5."""
    curriculum = Curriculum(3, reset_every=5, reset_after=4)
    due = []
    for step in range(23):
        before = curriculum.resets
        curriculum.observe(step, 0.5)
        if curriculum.resets > before:
            due.append(step)
    assert due == [12, 17, 22]
