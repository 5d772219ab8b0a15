"""Final answers: found, read to their last sign, compared by what they mean."""

import importlib.util
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sympy")

from errata.feedback.math import MathVerifier, last_boxed
from errata.feedback.math_final import final_answer
from errata.feedback.math_grade import compare
from errata.feedback.math_reading import readings
from errata.feedback.math_text import UnreadableError, normalise
from errata.records import Verdict


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
    assert (verdict.score, verdict.info["chosen"], verdict.info["boxed"]) == (float(right), given, True)


def test_what_the_feedback_says(verifier):
    completions = [r"\boxed{7}", "The answer is 8.", "Hm.", "The final answer is $7$.", r"<think>\boxed{7}</think>Hm."]
    verdicts = verifier(completions=completions, answer=["7"] * 5)
    assert verdicts[0] == Verdict(1.0, info={"chosen": "7", "boxed": True, "rule": "written alike"})
    assert verdicts[1] == Verdict(
        0.0,
        "Your final answer, 8, is wrong.",
        kind="answer",
        info={"chosen": "8", "boxed": False, "rule": "not the same"},
    )
    assert verdicts[2] == Verdict(
        0.0,
        "No final answer could be read: no final answer could be found. End with one answer in \\boxed{}.",
        kind="format",
        info={"chosen": None, "boxed": False, "rule": "no final answer could be found"},
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


def test_what_takes_too_long_costs_its_rollout():
    verifier = MathVerifier(workers=1, timeout_s=1e-6)
    (verdict,) = verifier(completions=[r"\boxed{2+2}"], answer=["7"])
    assert (verdict.score, verdict.kind) == (None, "error")
    assert verdict.info["error"] == "comparing with '7': took longer than 1e-06 s"
    verifier.timeout_s = 20.0
    assert verifier(completions=[r"\boxed{7}"], answer=["7"])[0].score == 1.0


@pytest.mark.parametrize(
    "bomb",
    [
        "9^{9^{9^{9^9}}}",
        "9^{99999999}",
        "(9!)!",
        "((9!)!)!",
        "10^{10^{10}}",
        "2^{2^{2^{2^{2^2}}}}",
        r"\binom{10^9}{10^8}",
        r"\sqrt{2}^{10^{12}}",
        "(x+1)^{10^9}",
        "e^{e^{e^{e^{e^e}}}}",
        "1e999999999",
        "1.5e-99999",
        "9" * 3900,
        "(" * 2000 + "1" + ")" * 2000,
        "{" * 2000 + "1" + "}" * 2000,
        r"\frac{1}{" * 200 + "1" + "}" * 200,
        "2^" * 500 + "2",
        "-" * 3000 + "1",
        r"\sqrt" * 600 + "2",
        "!" * 3000,
        "1" + "!" * 50,
        "3" + "!" * 8,
        r"\sum_{k=1}^{10^9} k",
        r"\sum_{k=1}^{500} k^{5000}",
        r"\prod_{k=1}^{500} (x+k)^{500}",
        "1, 2, \\ldots, 10^{12}",
        ",".join(map(str, range(900))),
        r"\pm" * 50 + "1",
        "sin" * 300,
        r"\int_0^1 x^{9999} dx",
        r"\lim_{x\to0} x^{x^{x^{x^x}}}",
        "|" * 999 + "x" + "|" * 999,
        r"\begin{vmatrix}" + r"a&b&c&d&e&f\\" * 6 + r"\end{vmatrix}",
        "a" * 3900,
        "1/" * 900 + "1",
        "0." + r"\overline{1234567890}" * 100,
        "0." + "1234567890" * 300 + "...",
        r"\text{" * 30 + "1" + "}" * 30,
    ],
)
def test_a_bomb_is_answered_soon_and_no_process_dies(verifier, bomb):
    process = verifier._idle.get()
    verifier._idle.put(process)
    verifier(completions=[r"\boxed{7}"], answer=["7"])
    before = process._process
    start = time.monotonic()
    for answer, tried in [("7", bomb), (bomb, "7"), (bomb, bomb + "+1")]:
        (verdict,) = verifier(completions=[f"\\boxed{{{tried}}}"], answer=[answer])
        assert verdict.score == 0.0, verdict
    assert time.monotonic() - start < 40  # and on an idle machine below 1
    assert process._process is before


@pytest.mark.parametrize(
    ("answer", "problem"),
    [(None, "None"), (["1", "2"], r"\['1', '2'\]"), ("", "''"), (True, "True"), ({}, "{}"), ([], r"\[\]")],
)
def test_an_answer_that_is_no_text_is_refused_by_row(verifier, answer, problem):
    with pytest.raises(ValueError, match=f"answer: {problem} in row 1 of the batch; write one text or number"):
        verifier(completions=["x", "x"], answer=["1", answer])


@pytest.mark.parametrize(("answer", "given"), [(5, "5"), (0.5, r"\frac12"), (5.0, "5"), (["5"], "5"), (10**30, "1e30")])
def test_an_answer_may_be_a_number_or_a_list_of_one(verifier, answer, given):
    (verdict,) = verifier(completions=[f"\\boxed{{{given}}}"], answer=[answer])
    assert verdict.score == 1.0


@pytest.mark.parametrize(
    ("answer", "given", "said"),
    [
        (r"\frac13", "0.333", "Your final answer, 0.333, is wrong. It is close, but an exact value is expected."),
        ("0.334", r"\frac13", r"Your final answer, \frac13, is wrong. It is close, but not the same number."),
        ("5", "1, 2", "Your final answer, 1, 2, is wrong. It is a list of 2; one value is expected."),
        ("1, 2", "1, 3", "Your final answer, 1, 3, is wrong. 1 of its 2 parts is right."),
        ("[0, 1)", "[0, 1]", "Your final answer, [0, 1], is wrong. Look at whether the ends belong to it."),
        (r"12\text{ cm}", r"12\text{ m}", r"Your final answer, 12\text{ m}, is wrong. Look at the unit."),
        (
            "4",
            r"3 \foo{4}",
            r"Your final answer, 3 \foo{4}, could not be read as a whole: '\foo' cannot be read there.",
        ),
        ("4", "(3, 4", "Your final answer, (3, 4, could not be read as a whole: a bracket is not closed."),
        ("x^2", "4", "Your final answer, 4, is wrong. It is one value; a formula is expected."),
    ],
)
def test_the_feedback_says_what_is_wrong_with_the_form(verifier, answer, given, said):
    (verdict,) = verifier(completions=[f"\\boxed{{{given}}}"], answer=[answer])
    assert (verdict.score, verdict.feedback, verdict.leaks_answer) == (0.0, said, False)


def test_of_two_words_the_wrong_one_gives_the_right_one_away(verifier):
    assert verifier(completions=[r"\boxed{no}"], answer=["yes"])[0].leaks_answer
    assert verifier(completions=[r"\boxed{\text{increasing}}"], answer=["decreasing"])[0].leaks_answer
    assert not verifier(completions=[r"\boxed{no}"], answer=["7"])[0].leaks_answer


def test_a_long_answer_is_not_repeated(verifier):
    long = "+".join(f"x_{{{i}}}" for i in range(300))
    (verdict,) = verifier(completions=[f"\\boxed{{{long}}}"], answer=["7"])
    assert (verdict.score, len(verdict.feedback) < 350) == (0.0, True)


@pytest.mark.parametrize(
    ("completion", "texts", "problem"),
    [
        (r"\boxed{3} then \boxed{4", (), "the last \\boxed{ is not closed"),
        (r"\boxed{3} then \boxed{}", (), "the last \\boxed{} is empty"),
        (r"$x=\boxed{3}$ and $y=\boxed{4}$", ("x = 3", "y = 4"), ""),
        (r"\boxed{3}. Later: \boxed{4}", ("4",), ""),
        (r"\boxed{3} is wrong.", (), "the last boxed answer is taken back"),
        (r"\boxed{3} is wrong. The answer is 4.", ("4",), ""),
        (r"\boxed{3}. Final answer: 4", ("4",), ""),
        ("The answer is 3? Wait, no.", (), "no final answer could be found"),
        ("The answer is 3. Hmm, wait, it is 4.", (), "no final answer could be found"),
        ("**Final Answer:** $x = 3$", ("x = 3",), ""),
        ("<answer>3</answer>", ("3",), ""),
    ],
)
def test_what_is_said_last_is_the_final_answer(completion, texts, problem):
    final = final_answer(completion)
    assert (final.texts, final.problem) == (texts, problem)


@given(st.text(alphabet="0123456789.,+-*/^_(){}[]<>=|!% \\abcexyzfracsqrtpi$", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_and_equals_itself(text):
    plain = None
    try:
        plain = normalise(text)
        found = readings(text)
    except UnreadableError:
        return
    assert normalise(plain) in (plain, normalise(normalise(plain)))
    assert compare(text, [text])["right"]
    assert found


@given(st.integers(-999, 999), st.integers(1, 99), st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_a_fraction_is_itself_however_it_is_written_and_no_other(above, below, way):
    value = Fraction(above, below)
    minus = "-" if above < 0 else ""
    written = [
        rf"\frac{{{above}}}{{{below}}}",
        rf"{minus}\dfrac{{{abs(above)}}}{{{below}}}",
        f"{above}/{below}",
        rf"$\frac{{{2 * above}}}{{{2 * below}}}$",
        rf"\left(\frac{{{above}}}{{{below}}}\right)",
        rf"x = {minus}\tfrac{{{abs(above)}}}{{{below}}}",
        f"{above} ÷ {below}",
    ][way]
    assert compare(str(value), [written])["right"]
    other = value + Fraction(1, below * 1000)
    assert not compare(str(other), [written])["right"]


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=5, unique=True), st.randoms())
@settings(max_examples=100, deadline=None)
def test_a_list_has_no_order_and_a_tuple_has(numbers, random):
    mixed = random.sample(numbers, len(numbers))
    texts = [", ".join(map(str, n)) for n in (numbers, mixed)]
    assert compare(texts[0], [rf"\{{{texts[1]}\}}"])["right"]
    assert compare(f"({texts[0]})", [f"({texts[1]})"])["right"] == (numbers == mixed)
    assert not compare(texts[0], [f"{texts[1]}, 99"])["right"]


def test_wrong_settings_and_rows(verifier, monkeypatch):
    with pytest.raises(ValueError, match="show: 'all' is none of nothing, answer, reference"):
        MathVerifier(show="all")
    with pytest.raises(ValueError, match="reads the column 'answer'"):
        verifier(completions=["x"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'errata\[math\]'"):
        MathVerifier()
