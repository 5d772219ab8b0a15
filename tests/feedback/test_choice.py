"""Multiple choice: tolerant reading, strict flag, feedback that does not name the answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.feedback.choice import Choice, ChoiceVerifier, read_choice
from errata.records import Verdict

OPTIONS = ("10 m", "20 m", "40 m", "5 m")


def test_the_strict_format():
    assert read_choice("<reasoning>\nh = gt²/2\n</reasoning>\n<answer>\nB\n</answer>\n") == Choice("B", True)
    assert read_choice("<answer>D</answer>") == Choice("D", True)


@pytest.mark.parametrize(
    ("text", "letter", "problem"),
    [
        ("<answer>b</answer>", "B", "the <answer> block holds a small letter"),
        ("<answer>(B)</answer>", "B", "the <answer> block holds more than the letter"),
        ("<answer>B.</answer>", "B", "the <answer> block holds more than the letter"),
        ("<answer>**B**</answer>", "B", "the <answer> block holds more than the letter"),
        ("<answer>B: 20 m</answer>", "B", "the <answer> block holds more than the letter"),
        ("<answer>B) 40 m</answer>", "B", "the <answer> block holds more than the letter"),
        ("<answer>Option B</answer>", "B", "the <answer> block holds more than the letter"),
        ("<answer>The answer is B.</answer>", "B", "the <answer> block holds more than the letter"),
        (r"<answer>$\boxed{B}$</answer>", "B", "the <answer> block holds more than the letter"),
        ("<answer>20 m</answer>", "B", "the <answer> block holds more than the letter"),
        ("<answer>A or B</answer>", None, "the <answer> block names no single option"),
        ("<answer>E</answer>", None, "the <answer> block names no single option"),
        ("<answer>7 m</answer>", None, "the <answer> block names no single option"),
        ("<answer> </answer>", None, "the <answer> block is empty"),
        ("<answer>A</answer> no: <answer>B</answer>", "B", "there are 2 <answer> blocks"),
        ("<answer>B</answer> as shown above", "B", "text follows the <answer> block"),
        ("<ANSWER>B</ANSWER>", "B", "text follows the <answer> block"),
        ("so <answer>\nB", "B", "the <answer> block is not closed"),
        ("so <answer>", None, "the <answer> block is not closed"),
        (r"thus \boxed{B}", "B", "there is no <answer> block"),
        (r"thus \boxed{\text{(B)}}", "B", "there is no <answer> block"),
        ("The answer is B.", "B", "there is no <answer> block"),
        ("**Answer: B**", "B", "there is no <answer> block"),
        ("The answer is C? No, the answer is (B), because h = 20 m.", "B", "there is no <answer> block"),
        ("h = 20 m\n\nB", "B", "there is no <answer> block"),
        ("The answer is A stone falling.", None, "there is no <answer> block"),
        ("A stone falls. B is blue.", None, "there is no <answer> block"),
        ("", None, "there is no <answer> block"),
    ],
)
def test_a_sloppy_format_is_still_read(text, letter, problem):
    choice = read_choice(text, OPTIONS)
    assert choice.letter == letter
    assert not choice.strict
    if text != "<ANSWER>B</ANSWER>":
        assert choice.problem == problem


@given(st.text(alphabet="<>/answerABCD \n.*\\boxed{}()"))
def test_any_text_is_read_and_strict_means_a_clean_letter(text):
    choice = read_choice(text)
    assert choice.letter is None or choice.letter in "ABCD"
    assert choice.strict == (choice.problem == "")
    if choice.strict:
        assert text.rstrip().endswith("</answer>")
        assert choice.letter is not None


def judge(completion, answer="B", **args):
    (verdict,) = ChoiceVerifier(**args)(completions=[completion], answer=[answer], options=[OPTIONS], prompts=["?"])
    return verdict


def test_right_wrong_and_unread():
    assert judge("<answer>B</answer>") == Verdict(1.0, info={"chosen": "B", "strict_format": True})
    assert judge("<answer>C</answer>") == Verdict(
        0.0,
        "You chose C (40 m). That is not the right option.",
        kind="choice",
        info={"chosen": "C", "strict_format": True},
    )
    assert judge("It falls 20 m.") == Verdict(
        0.0,
        "No answer could be read. Format: there is no <answer> block; end with exactly one of A, B, C, D, alone, "
        "between <answer> and </answer>.",
        kind="format",
        info={"chosen": None, "strict_format": False},
    )


def test_a_right_choice_in_a_sloppy_format():
    sloppy = judge("<answer>(B)</answer>")
    assert (sloppy.score, sloppy.kind, sloppy.leaks_answer) == (1.0, "format", False)
    assert sloppy.feedback.startswith("Format: the <answer> block holds more than the letter;")
    assert judge("<answer>(B)</answer>", require_format=True).score == 0.0
    assert judge("<answer>B</answer>", require_format=True).score == 1.0


def test_the_answer_is_named_only_when_asked_for():
    shown = judge("<answer>C</answer>", show_answer=True)
    assert shown.feedback.endswith("That is not the right option. The right option is B (20 m).")
    assert shown.leaks_answer
    assert judge("nothing", show_answer=True).leaks_answer
    for completion in ("<answer>A</answer>", "<answer>(C)</answer>", "nothing", "<answer>B</answer> x"):
        plain = judge(completion)
        assert not plain.leaks_answer
        assert "20 m" not in plain.feedback


def test_of_two_options_the_wrong_one_names_the_right_one():
    (verdict,) = ChoiceVerifier()(completions=["<answer>A</answer>"], answer=["B"], options=[("yes", "no")])
    assert (verdict.score, verdict.leaks_answer) == (0.0, True)


def test_thinking_does_not_answer():
    assert judge("<think><answer>B</answer></think> <answer>C</answer>").info["chosen"] == "C"
    assert judge("<think>so <answer>B</answer>").info["chosen"] is None
    assert judge([{"role": "assistant", "content": "<answer>B</answer>"}]).score == 1.0


def test_options_may_be_unnamed_but_not_the_answer():
    (verdict,) = ChoiceVerifier()(completions=["<answer>C</answer>"], answer=["B"])
    assert verdict.feedback == "You chose C. That is not the right option."
    with pytest.raises(ValueError, match="the choice verifier reads the column 'answer'"):
        ChoiceVerifier()(completions=["x"])
    with pytest.raises(ValueError, match="answer: 'E' in row 1 of the batch is none of A, B, C, D"):
        ChoiceVerifier()(completions=["x", "x"], answer=["A", "E"])
