"""Final answers, compared as expressions by the real math-verify."""

import importlib.util

import pytest

from errata.feedback.math import MathVerifier, last_boxed
from errata.records import Verdict

pytestmark = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed")


@pytest.fixture(scope="module")
def verifier():
    return MathVerifier(workers=1, timeout_s=20.0)


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{\frac{1}{3}}", r"\frac{1}{3}"),
        (r"\boxed {\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\text{a \} b}}", r"\text{a \} b}"),
        (r"\fbox{7}", "7"),
        (r"\boxed{1} then \boxed{2", "1"),
        ("42", None),
        (r"\boxed{", None),
    ],
)
def test_the_last_box_that_is_closed(text, boxed):
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("answer", "given", "right"),
    [
        ("204", "204", True),
        ("204", "0204", True),
        ("204", "205", False),
        (r"\frac{1}{3}", "1/3", True),
        (r"\frac{1}{3}", r"\dfrac{2}{6}", True),
        (r"\frac{1}{3}", "0.33", False),
        (r"3\sqrt{2}", r"\sqrt{18}", True),
        ("1000", "1,000", True),
        ("1.4e-3", r"1.4 \times 10^{-3}", True),
        ("(3, 2)", "(3,2)", True),
        ("(3, 2)", "(2,3)", False),
        ("x^2+1", "1+x^2", True),
        (r"\text{even}", "even", True),
        (r"\text{even}", "odd", False),
        ("12", r"12 \text{ apples}", True),
        ("$42$", "42", True),
        ("5", r"\infty", False),
    ],
)
def test_answers_are_compared_as_expressions(verifier, answer, given, right):
    (verdict,) = verifier(completions=[f"Thus \\boxed{{{given}}}"], answer=[answer], prompts=["?"])
    assert (verdict.score, verdict.info) == (float(right), {"given": given, "boxed": True})


def test_what_the_feedback_says(verifier):
    completions = [r"\boxed{7}", "The answer is 8.", "Hm.", "The final answer is $7$.", r"<think>\boxed{7}</think>Hm."]
    verdicts = verifier(completions=completions, answer=["7"] * 5)
    assert verdicts[0] == Verdict(1.0, info={"given": "7", "boxed": True})
    assert verdicts[1] == Verdict(
        0.0, "Your final answer, 8, is wrong.", kind="answer", info={"given": "8", "boxed": False}
    )
    assert verdicts[2] == Verdict(
        0.0,
        "No final answer could be read; put it into \\boxed{}.",
        kind="format",
        info={"given": None, "boxed": False},
    )
    assert (verdicts[3].score, verdicts[3].kind) == (1.0, "format")
    assert verdicts[4].score == 0.0


@pytest.mark.parametrize(
    ("show", "references", "feedback"),
    [
        ("answer", ["Count them."], "Your final answer, 8, is wrong. The right answer is 9."),
        ("reference", ["Count them."], "Your final answer, 8, is wrong. A right solution:\nCount them."),
        ("reference", None, "Your final answer, 8, is wrong. The right answer is 9."),
    ],
)
def test_feedback_with_the_answer_or_the_reference_leaks(verifier, monkeypatch, show, references, feedback):
    monkeypatch.setattr(verifier, "show", show)
    (verdict,) = verifier(completions=[r"\boxed{8}"], answer=["9"], reference=references)
    assert (verdict.score, verdict.feedback, verdict.leaks_answer) == (0.0, feedback, True)


def test_an_expression_that_takes_for_ever_costs_its_rollout():
    verifier = MathVerifier(workers=1, timeout_s=3.0)
    verdicts = verifier(completions=[r"\boxed{9^{9^{9^{9^9}}}}", r"\boxed{7}"], answer=["7", "7"])
    assert (verdicts[0].score, verdicts[0].kind) == (None, "error")
    assert verdicts[0].info["error"] == "comparing with '7': took longer than 3 s"
    assert verdicts[1].score == 1.0


def test_wrong_settings_and_rows(verifier, monkeypatch):
    with pytest.raises(ValueError, match="show: 'all' is none of nothing, answer, reference"):
        MathVerifier(show="all")
    with pytest.raises(ValueError, match="reads the column 'answer'"):
        verifier(completions=["x"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'errata\[math\]'"):
        MathVerifier()
