"""Completions that speak of feedback their policy never saw."""

import pytest

from errata.feedback.leaks import mentions_feedback, quotes


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("As the hint says, x = 3.", "As the hint"),
        ("According to the feedback, step 2 is wrong.", "According to the feedback"),
        ("Based on the reference solution we get 7.", "Based on the reference solution"),
        ("The critique points out a sign error.", "The critique points out"),
        ("In my previous attempt I forgot the carry.", "my previous attempt"),
        ("Your earlier answer was 5.", "Your earlier answer"),
        ("Following the\ncorrection: 4.", "Following the correction"),
        ("We were told that the right answer is 9.", "were told"),
        ("The traceback above says index out of range.", "The traceback above says"),
        ("The judge expected 12.", "The judge expected"),
        ("using the given solution", "using the given solution"),
    ],
)
def test_mentions(text, phrase):
    found = mentions_feedback(text)
    assert found is not None
    assert phrase in found
    assert mentions_feedback([{"role": "assistant", "content": text}]) == found


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 7.",
        "A feedback loop with positive feedback amplifies the signal.",
        "Using the given options, only B remains.",
        "From the given answer choices we exclude D.",
        "The correct answer is B.",
        "We correct the estimate by the known volume.",
        "The previous term was 4, so the next is 8.",
        "As the temperature rises, the solution becomes saturated.",
        "def attempt(previous): return previous",
        "The solution shows a blue colour; the given solution of NaCl is neutral.",
        "",
    ],
)
def test_ordinary_answers_do_not(text):
    assert mentions_feedback(text) is None


def test_what_the_prompt_speaks_of_does_not_count():
    text = "As the hint says, substitute u = x²."
    prompt = [{"role": "user", "content": "Integrate. Hint: substitute."}]
    assert mentions_feedback(text, prompt) is None
    assert mentions_feedback(text, "Integrate.") == "As the hint"
    assert mentions_feedback("In my previous answer I erred.", "What is the answer?") == "my previous answer"


def test_eight_words_in_a_row_of_a_source_are_a_quotation():
    source = "First we add the two numbers and then we divide by three."
    assert quotes("So: FIRST we add the two numbers  and then stop", source) == "first we add the two numbers and then"
    assert quotes("So: first we add the two numbers and stop then", source) is None  # seven
    assert quotes([{"role": "assistant", "content": source}], source) is not None
    assert quotes(source, source, [{"role": "user", "content": f"Explain: {source}"}]) is None
    assert quotes("a b c d e f g", "a b c d e f g") is None
