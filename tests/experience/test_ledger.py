"""The pass-rate ledger against METHODS' formulas, worked by hand, and its invariants."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.experience import PassRateLedger


def test_released_by_hand():
    ledger = PassRateLedger("released")
    # s=3, e=5: raw = 4/10, conf = 8/16, p = .5·.4 + .5·.5
    assert ledger.update("a", 3, 8, step=10) == pytest.approx(0.45, abs=1e-15)
    # two steps later: s = .7225·3 + 8 = 10.1675, e = .7225·5 = 3.6125; seen 13.78
    # raw = 11.1675/15.78, conf = 13.78/21.78
    expected = (13.78 / 21.78) * (11.1675 / 15.78) + (8 / 21.78) * 0.5
    assert ledger.update("a", 8, 8, step=12) == pytest.approx(expected, abs=1e-12)
    assert ledger.rate("a") == pytest.approx(expected, abs=1e-12)


def test_released_rate_decays_towards_one_half_with_the_steps():
    ledger = PassRateLedger("released")
    ledger.update("a", 8, 8, step=0)
    # one step later s = 6.8, e = 0: raw = 7.8/8.8, conf = 6.8/14.8
    assert ledger.rate("a", step=1) == pytest.approx((6.8 / 14.8) * (7.8 / 8.8) + (8 / 14.8) * 0.5, abs=1e-12)
    assert ledger.rate("a", step=0) == ledger.rate("a")
    assert ledger.rate("a", step=500) == pytest.approx(0.5, abs=1e-12)


def test_decay_per_visit_remembers_over_an_epoch():
    ledger = PassRateLedger("released", decay_per="visit")
    ledger.update("a", 8, 8, step=0)
    assert ledger.rate("a", step=500) == ledger.rate("a") == pytest.approx(0.5 * 0.9 + 0.5 * 0.5)
    # s = .85·8 + 8 = 14.8, e = 0: raw = 15.8/16.8, conf = 14.8/22.8
    expected = (14.8 / 22.8) * (15.8 / 16.8) + (8 / 22.8) * 0.5
    assert ledger.update("a", 8, 8, step=500) == pytest.approx(expected, abs=1e-12)


def test_paper_by_hand():
    ledger = PassRateLedger("paper")
    assert ledger.update("a", 2, 8, step=0) == 0.25  # the first visit is what it observed
    assert ledger.update("a", 6, 8, step=9) == 0.5  # ½·.25 + ½·.75
    assert ledger.update("a", 8, 8, step=9) == 0.75
    assert ledger.rate("a", step=1000) == 0.75
    slow = PassRateLedger("paper", alpha=0.9)
    slow.update("a", 0, 4, step=0)
    assert slow.update("a", 4, 4, step=1) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["released", "paper"])
def test_unseen_and_reset_are_medium(kind):
    ledger = PassRateLedger(kind)
    assert ledger.rate("a") == ledger.rate("a", step=7) == 0.5
    ledger.update("a", 8, 8, step=3)
    assert "a" in ledger
    ledger.reset()
    assert ledger.rate("a") == 0.5
    assert len(ledger) == 0
    ledger.update("a", 8, 8, step=0)  # a reset ledger may start again from step 0


def test_forgets_the_least_recently_updated():
    ledger = PassRateLedger("paper", max_problems=2)
    ledger.update("a", 1, 1, step=0)
    ledger.update("b", 1, 1, step=1)
    ledger.update("a", 1, 1, step=2)
    ledger.rate("b")  # looking is not updating
    ledger.update("c", 1, 1, step=3)
    assert ["a" in ledger, "b" in ledger, "c" in ledger] == [True, False, True]
    assert ledger.rate("b") == 0.5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("", 1, 2, 0), "problem_id"),
        ((7, 1, 2, 0), "problem_id"),
        (("a", 3, 2, 0), "n_correct"),
        (("a", -1, 2, 0), "n_correct"),
        (("a", math.nan, 2, 0), "n_correct"),
        (("a", None, 2, 0), "n_correct"),
        (("a", 0, 0, 0), "n_total"),
        (("a", 1, 2.5, 0), "n_total"),
        (("a", 1, 2, -1), "step"),
        (("a", 1, 2, 1.5), "step"),
    ],
)
@pytest.mark.parametrize("kind", ["released", "paper"])
def test_bad_updates_name_the_argument_and_change_nothing(kind, arguments, named):
    ledger = PassRateLedger(kind)
    with pytest.raises(ValueError, match=rf"^{named}:"):
        ledger.update(*arguments)
    assert len(ledger) == 0


@pytest.mark.parametrize("kind", ["released", "paper"])
def test_time_does_not_run_backwards(kind):
    ledger = PassRateLedger(kind)
    ledger.update("a", 1, 2, step=5)
    with pytest.raises(ValueError, match=r"^step: 4 lies before step 5, the last visit of 'a'"):
        ledger.update("a", 1, 2, step=4)
    with pytest.raises(ValueError, match=r"^step:"):
        ledger.rate("a", step=4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"kind": "papier"}, "kind"),
        ({"decay_per": "epoch"}, "decay_per"),
        ({"decay": 1.1}, "decay"),
        ({"alpha": math.nan}, "alpha"),
        ({"max_problems": 0}, "max_problems"),
    ],
)
def test_bad_settings_name_the_argument(arguments, named):
    with pytest.raises(ValueError, match=rf"^{named}:"):
        PassRateLedger(**arguments)


def test_a_state_of_the_other_kind_is_refused():
    with pytest.raises(ValueError, match="kind='paper'"):
        PassRateLedger("released").load_state_dict(PassRateLedger("paper").state_dict())
    with pytest.raises(ValueError, match="no 'kind'"):
        PassRateLedger("released").load_state_dict({})


visits = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.integers(1, 16).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
        st.integers(0, 9),  # steps since the visit before
    ),
    max_size=30,
)
ledgers = st.builds(
    lambda kind, decay, alpha, per, bound: (
        lambda: PassRateLedger(kind, decay=decay, alpha=alpha, decay_per=per, max_problems=bound)
    ),
    st.sampled_from(["released", "paper"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["step", "visit"]),
    st.integers(1, 6),
)


def replay(ledger, items, step=0):
    rates = []
    for problem_id, (n_correct, n_total), pause in items:
        step += pause
        rates.append(ledger.update(problem_id, n_correct, n_total, step))
    return rates, step


@settings(deadline=None)
@given(ledgers, visits)
def test_rates_are_probabilities_and_the_ledger_is_bounded(make, items):
    ledger = make()
    rates, step = replay(ledger, items)
    assert all(0 <= p <= 1 for p in rates)
    assert all(0 <= ledger.rate(problem_id, step) <= 1 for problem_id in "abcdefg")
    assert len(ledger) <= ledger.max_problems


@settings(deadline=None)
@given(ledgers, visits, st.integers(1, 16).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))
def test_the_rate_does_not_fall_with_more_correct(make, items, last):
    n_correct, n_total = last
    fewer, more = make(), make()
    step = replay(fewer, items)[1]
    replay(more, items)
    assert fewer.update("a", n_correct - 1, n_total, step) <= more.update("a", n_correct, n_total, step)


@settings(deadline=None)
@given(ledgers, visits, st.data())
def test_resuming_anywhere_equals_never_having_stopped(make, items, data):
    cut = data.draw(st.integers(0, len(items)))
    whole, before, after = make(), make(), make()
    step = replay(before, items[:cut])[1]
    after.load_state_dict(json.loads(json.dumps(before.state_dict(), sort_keys=True)))
    assert replay(whole, items)[0][cut:] == replay(after, items[cut:], step)[0]
    assert json.dumps(whole.state_dict(), sort_keys=True) == json.dumps(after.state_dict(), sort_keys=True)
