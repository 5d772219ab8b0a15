"""avg@k, pass@k, maj@k and their intervals: by hand, by enumeration, and by simulation of what an interval promises."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.evaluation import avg_at_k, maj_at_k, pass_at_k, summary

# -- pass@k --------------------------------------------------------------------------------------------------------


def test_pass_at_k_by_hand():
    assert pass_at_k(4, 1, 2) == 0.5  # 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert pass_at_k(5, 2, 3) == 0.9  # 1 - C(3,3)/C(5,3) = 1 - 1/10
    assert pass_at_k(5, 0, 5) == 0.0
    assert pass_at_k(5, 1, 5) == 1.0
    assert isinstance(pass_at_k(5, 1, 5), float)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_is_unbiased():
    p, n, k = 0.3, 6, 3
    expected = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_over_problems():
    np.testing.assert_array_equal(pass_at_k(4, [0, 1, 4], 2), [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(pass_at_k(np.array([4, 5]), np.array([1, 2]), 2), [0.5, 0.7])
    assert pass_at_k([[4, 4]], [[1, 0]], 1).shape == (1, 2)


def test_pass_at_k_is_exact_where_floats_overflow():
    assert pass_at_k(10_000, 1, 5_000) == 0.5
    assert pass_at_k(2_000, 2, 1_000) == pytest.approx(1 - 1000 * 999 / (2000 * 1999), abs=1e-15)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((4, 1, 5), "k: is 5, but problem 0 has n = 4"),
        (([9, 4], [1, 1], 5), "k: is 5, but problem 1 has n = 4"),
        ((4, 1, 0), "k:"),
        ((4, 1, 1.5), "k:"),
        ((4, 1, [1, 2]), "k:"),
        ((4, 5, 1), "c: 5 right attempts of n = 4"),
        ((4, -1, 1), "c:"),
        ((4, math.nan, 1), "c:"),
        ((4, math.inf, 1), "c:"),
        ((4.5, 1, 1), "n:"),
        (("4", 1, 1), "n:"),
        (([], [], 1), "n:"),
    ],
)
def test_pass_at_k_refuses_nonsense(arguments, named):
    with pytest.raises(ValueError, match=rf"^{named}"):
        pass_at_k(*arguments)


# -- avg@k and maj@k -----------------------------------------------------------------------------------------------


def test_avg_at_k():
    assert avg_at_k([[1, 0, 0, 0], [1, 1, 1, 0]]) == 0.5
    assert avg_at_k(np.array([[True, False]])) == 0.5
    assert avg_at_k([[0.25]]) == 0.25


@pytest.mark.parametrize("table", [[], [[]], [1, 0], [[1, 0], [1]], [[math.nan]], [["x"]], [[None]]])
def test_avg_at_k_wants_a_full_table(table):
    with pytest.raises(ValueError, match=r"^correct:"):
        avg_at_k(table)


def test_maj_at_k():
    assert maj_at_k([["B", "B", "A"]], ["B"]) == 1.0
    assert maj_at_k([["B", "B", "A"], ["C", "D", "D"]], ["B", "C"]) == 0.5
    assert maj_at_k([["A", "B", "B", "A", "C"]], ["B"]) == 0.5  # tied with A: a fair draw
    assert maj_at_k([["C", "A", "B"]], ["B"]) == pytest.approx(1 / 3)
    assert maj_at_k([[None, None, "B"]], ["B"]) == 1.0  # no answer, no vote
    assert maj_at_k([[None, None]], ["B"]) == 0.0
    with pytest.raises(ValueError, match=r"^answers: 1 problems against 2"):
        maj_at_k([["A"]], ["A", "B"])


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["A", "B", None]), min_size=1, max_size=6), min_size=1, max_size=4), st.randoms()
)
def test_maj_at_k_does_not_depend_on_the_order_of_sampling(answers, dice):
    shuffled = [dice.sample(row, len(row)) for row in answers]
    assert maj_at_k(answers, ["A"] * len(answers)) == maj_at_k(shuffled, ["A"] * len(answers))


# -- bootstrap -----------------------------------------------------------------------------------------------------


# -- summary -------------------------------------------------------------------------------------------------------


def rows_of(problem, scores, chosen=None, **fields):
    chosen = chosen or [None] * len(scores)
    return [
        {"problem_id": problem, "score": score, "info": {} if letter is None else {"chosen": letter}, **fields}
        for score, letter in zip(scores, chosen, strict=True)
    ]


def test_summary_by_hand():
    rows = rows_of("a", [1.0, 0.0, 0.0, 0.0], length=10) + rows_of("b", [1.0, 1.0, None, 0.5], length=20)
    found = summary(rows)
    assert (found["n_problems"], found["k"], found["unjudged"], found["length"]) == (2, 4, 1, 15.0)
    assert found["avg@4"] == found["pass@1"] == (1 / 4 + 2 / 4) / 2
    assert found["pass@2"] == pytest.approx((1 / 2 + 5 / 6) / 2)
    assert found["pass@4"] == 1.0
    assert found["score"] == pytest.approx(3.5 / 7)
    assert (found["pass@4_low"], found["pass@4_high"]) == pytest.approx((0.3424, 1.0), abs=1e-4)  # Wilson, 2 of 2
    assert found["avg@4_low"] < found["avg@4"] < found["avg@4_high"]
    assert found["pass_curve"] == pytest.approx([3 / 8, 2 / 3, 7 / 8, 1.0])  # (1/4+1/2)/2, (1/2+5/6)/2, (3/4+1)/2, 1
    assert [name for name in found if "@" in name and not name.endswith(("_low", "_high"))] == [
        "avg@4", "pass@1", "pass@2", "pass@4",
    ]  # fmt: skip
    assert "maj@4" not in found
    assert "format_rate" not in found


def test_summary_reports_pass_at_powers_of_two_and_at_k():
    found = summary(rows_of("a", [1.0] * 12))
    assert [name for name in found if name.startswith("pass") and "_" not in name] == [
        "pass@1", "pass@2", "pass@4", "pass@8", "pass@12",
    ]  # fmt: skip


def test_summary_threshold():
    partial = [*rows_of("a", [0.5, 0.0]), *rows_of("b", [0.5, 1.0])]
    assert [summary(partial, threshold=t)["avg@2"] for t in (0.5, 1.0)] == [0.75, 0.25]
    assert [summary(partial, threshold=t)["pass@2"] for t in (0.5, 1.0)] == [1.0, 0.5]
    assert summary(rows_of("a", [0.5, 0.4]), threshold=0.5)["avg@2"] == 0.5


def test_summary_maj_takes_the_verifiers_word_for_what_is_right():
    rows = rows_of("a", [1.0, 1.0, 0.0], ["B", "B", "A"]) + rows_of("b", [1.0, 0.0, 0.0], ["C", "D", "D"])
    assert summary(rows)["maj@3"] == 0.5
    sloppy = rows_of("a", [1.0, 0.0, 0.0], ["B", "B", "A"])  # the second B lost its score to the format
    assert summary(sloppy)["maj@3"] == 1.0


def test_summary_format_rate_is_right_or_absent():
    def of(kinds, scores, **info):
        rows = rows_of("a", scores)
        return summary([{**row, "kind": kind, "info": info} for row, kind in zip(rows, kinds, strict=True)])

    strict = [
        {**row, "info": {"strict_format": good}} for row, good in zip(rows_of("a", [1, 1]), [True, False], strict=True)
    ]
    assert summary(strict)["format_rate"] == 0.5
    # A failed verifier says nothing of the format.
    assert of(["", "format", "trace", "error"], [1, 0, 0, None])["format_rate"] == pytest.approx(2 / 3)
    # Wrong answers with a score alone, or with a text of the user's own, may not have been readable.
    assert "format_rate" not in of([""] * 6, [0.0] * 6)
    assert "format_rate" not in of(["correction", "format"], [0.0, 0.0])
    assert of(["format"] * 6, [0.0] * 6)["format_rate"] == 0.0
    assert of(["trace+correction", "tests"], [0.0, 0.5])["format_rate"] == 1.0


def test_summary_maj_in_mathematics():
    pytest.importorskip("sympy")
    from errata.tasks import verifier

    texts = [r"\boxed{4}", r"\boxed{4}", r"\boxed{5}", "no idea"]
    judged = verifier("math", workers=1)(completions=texts, answer=["4"] * 4)
    rows = [{"problem_id": "a", "score": v.score, "kind": v.kind, "info": v.info} for v in judged]
    found = summary(rows)
    assert (found["avg@4"], found["maj@4"], found["format_rate"]) == (0.5, 1.0, 0.75)


def test_summary_names_the_problem_that_is_short():
    with pytest.raises(ValueError, match=r"^rows: problem 'b' has 1 attempts, expected k = 2"):
        summary(rows_of("a", [1, 1]) + rows_of("b", [1]))
    with pytest.raises(ValueError, match=r"'a' has 2 attempts, expected k = 3"):
        summary(rows_of("a", [1, 1]), k=3)
    with pytest.raises(ValueError, match=r"^rows: there are none"):
        summary([])


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 5).flatmap(
        lambda k: st.lists(st.lists(st.sampled_from([0.0, 1.0, None]), min_size=k, max_size=k), min_size=1, max_size=6)
    )
)
def test_summary_orders_its_numbers(table):
    found = summary([row for i, scores in enumerate(table) for row in rows_of(str(i), scores)])
    k = len(table[0])
    passes = [found[f"pass@{j}"] for j in sorted({1, k})]
    assert passes == sorted(passes)
    assert found["pass@1"] == pytest.approx(found[f"avg@{k}"])
    for name in (f"avg@{k}", f"pass@{k}"):
        assert 0 <= found[f"{name}_low"] <= found[name] + 1e-12 <= found[f"{name}_high"] + 2e-12 <= 1 + 2e-12
