"""The rulebook's judge, on attempts worked by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.feedback.rulebook import USUAL, RulebookVerifier, judge, rule_of, solve
from errata.records import Verdict
from errata.tasks.rulebook import write_expression

NEW = rule_of("x+n, x-n, x*n+3")

expressions = st.builds(
    write_expression,
    st.integers(0, 9),
    st.lists(st.tuples(st.sampled_from("+-*"), st.integers(1, 9)), min_size=1, max_size=7),
)


@pytest.mark.parametrize(
    ("rulebook", "x", "operator", "n", "expected"),
    [
        (USUAL, 7, "+", 5, 2),
        (USUAL, 2, "-", 9, 3),
        (USUAL, 7, "*", 6, 2),
        ("x+n, x-n, x*n+3", 4, "*", 2, 1),
        ("x+n+9", 0, "+", 1, 0),
    ],
)
def test_a_rulebook_is_the_usual_rules_plus_constants_mod_10(rulebook, x, operator, n, expected):
    assert rule_of(rulebook)(x, operator, n) == expected


@pytest.mark.parametrize("text", ["", "x/n", "x+n; x-n", "x+n, x+n+1", "x*n-3"])
def test_a_text_that_is_no_rulebook_is_refused(text):
    with pytest.raises(ValueError, match="rulebook"):
        rule_of(text)


def test_an_operator_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="no rule for '-'"):
        solve("3a-1", rule_of("x+n"))


def test_the_solution_writes_every_step_and_ends_in_the_answer():
    assert solve("7a+3b*4c-2", NEW) == "7a+3=0b*4=3c-2=1"
    assert solve("7a+3b*4c-2", rule_of(USUAL)) == "7a+3=0b*4=0c-2=8"


@pytest.mark.parametrize(
    ("attempt", "feedback"),
    [
        ("7a+3=0b*4=0c-2=8", "0b*4=3 not 0"),
        ("7a+3=1b*4=4c-2=2", "7a+3=0 not 1;1b*4=7 not 4"),  # step b is executed on the 1 that was written
        ("7a+3=0b*4=3c-2=8", "3c-2=1 not 8"),
        ("7a+3=0b+4=4c-2=2", "0b*4=3 not b+4=4"),  # misread the operator
        ("8a+3=1b*4=7c-2=5", "7 not 8"),  # misread the start
    ],
)
def test_a_trace_names_step_expected_and_got(attempt, feedback):
    verdict = judge(attempt, "7a+3b*4c-2", NEW)
    assert (verdict.score, verdict.feedback, verdict.kind) == (0.0, feedback, "trace")
    assert judge(attempt, "7a+3b*4c-2", NEW, trace="first").feedback == feedback.split(";")[0]


@pytest.mark.parametrize(
    ("attempt", "leaks"), [("7a+3=0b*4=0c-2=8", False), ("7a+3=1b*4=7c-2=4", False), ("7a+3=0b*4=3c-2=0", True)]
)
def test_a_trace_leaks_the_answer_only_where_all_steps_before_the_last_are_right(attempt, leaks):
    assert judge(attempt, "7a+3b*4c-2", NEW).leaks_answer is leaks


def test_the_right_attempt_needs_no_feedback():
    for feedback in ("trace", "correction", "bit"):
        assert judge("7a+3=0b*4=3c-2=1", "7a+3b*4c-2", NEW, feedback=feedback) == Verdict(1.0, info={"chosen": "1"})


def test_the_right_answer_by_a_wrong_step_does_not_count():
    assert judge("7a+3=0b*4=2c-2=1", "7a+3b*4c-2", NEW).score == 0.0


def test_a_correction_is_the_attempt_mended():
    verdict = judge("7a+3=0b*4=0c-2=8", "7a+3b*4c-2", NEW, feedback="correction")
    assert verdict.feedback == "7a+3=0b*4=3c-2=1"
    assert (verdict.score, verdict.kind, verdict.leaks_answer) == (0.0, "correction", True)


def test_bit_says_nothing():
    assert judge("7a+3=0b*4=0c-2=8", "7a+3b*4c-2", NEW, feedback="bit") == Verdict(
        0.0, info={"chosen": "8", "wrong_steps": ["b"]}
    )


@pytest.mark.parametrize(
    "attempt", ["", "1", "7a+3=0b*4=3", "7a+3=0b*4=3c-2=", "7a+3=0b*4=3c-2=11", "7+3=0;0*4=3;3-2=1"]
)
def test_a_malformed_attempt_is_told_the_format(attempt):
    verdict = judge(attempt, "7a+3b*4c-2", NEW)
    assert (verdict.score, verdict.kind) == (0.0, "format")
    assert verdict.feedback == "write the result after every step: 7a+3=0"
    assert "chosen" not in verdict.info


@settings(deadline=None)
@given(expressions, st.text(alphabet="0123456789abc+-*=; ", max_size=40))
def test_any_text_is_judged_and_only_the_solution_is_right(expression, text):
    assert (judge(text, expression, NEW).score == 1.0) == (text.strip() == solve(expression, NEW))


@settings(deadline=None)
@given(expressions, st.data())
def test_a_slip_is_named_by_the_solution_s_own_step(expression, data):
    right = solve(expression, NEW)
    step = data.draw(st.integers(0, len(expression) // 3 - 1))
    wrong = str((int(right[5 * step + 5]) + 1) % 10)
    attempt = right[: 5 * step + 5] + wrong + right[5 * step + 6 :]
    verdict = judge(attempt, expression, NEW, trace="first")
    assert verdict.feedback == f"{right[5 * step : 5 * step + 6]} not {wrong}"
    assert verdict.info["wrong_steps"][0] == "abcdefg"[step]


def test_the_verifier_is_called_like_a_trl_reward_function():
    verifier = RulebookVerifier(feedback="trace", trace="first")
    verdicts = verifier(
        prompts=[[{"role": "user", "content": "0a*4=?"}]] * 2,
        completions=["0a*4=3", [{"role": "assistant", "content": "0a*4=0"}]],
        expression=["0a*4"] * 2,
        rulebook=["x*n+3", "x*n+3"],
        trainer_state=None,
    )
    assert verdicts[0] == Verdict(1.0, info={"chosen": "3"})
    assert (verdicts[1].score, verdicts[1].feedback) == (0.0, "0a*4=3 not 0")


def test_bad_settings_and_missing_columns_are_named():
    with pytest.raises(ValueError, match="feedback: 'tarce'"):
        RulebookVerifier(feedback="tarce")
    with pytest.raises(ValueError, match="trace: 'last'"):
        RulebookVerifier(trace="last")
    with pytest.raises(ValueError, match="'rulebook'"):
        RulebookVerifier()(completions=["=1"], expression=["1"])
