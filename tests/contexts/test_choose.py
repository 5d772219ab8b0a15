import pytest

from errata.contexts import choose
from errata.records import Group, Rollout, Verdict, strip_thinking


def rollout(index, completion, score, feedback="", *, reference=None, leaks=False, kind="trace", length=0):
    return Rollout(
        index,
        "p",
        [{"role": "user", "content": "2+2="}],
        completion,
        Verdict(score, feedback, kind if feedback else "", leaks),
        length=length,
        reference=reference,
    )


def group(*rollouts):
    return Group("p", rollouts)


def test_first_successful_sibling_is_shown():
    wrong, right, other = rollout(0, "5", 0.0, "no"), rollout(1, "4", 1.0), rollout(2, "four", 1.0)
    context = choose(wrong, group(wrong, right, other))
    assert (context.kind, context.solution, context.feedback, context.leaks_answer) == ("sibling", "4", "", True)
    assert "rollout 1" in context.why


def test_never_its_own_text_nor_an_exact_copy_of_it():
    a, b = rollout(0, "4", 1.0), rollout(1, "4", 1.0)
    assert choose(a, group(a, b)).kind == "none"
    c = rollout(2, "four", 1.0)
    assert choose(a, group(a, b, c)).solution == "four"


def test_feedback_where_no_sibling_succeeded():
    wrong, also = rollout(0, "5", 0.0, "step 1: expected 4, got 5"), rollout(1, "6", 0.0)
    context = choose(wrong, group(wrong, also))
    assert (context.kind, context.solution, context.feedback) == ("feedback", "", "step 1: expected 4, got 5")
    assert choose(also, group(wrong, also)).kind == "none"


def test_feedback_on_a_solved_attempt_is_not_shown():
    right = rollout(0, "4", 1.0, "all tests passed")
    assert choose(right, group(right)).kind == "none"


def test_a_failed_verifiers_words_are_not_feedback():
    wrong = rollout(0, "5", 0.0, "Traceback of the verifier", kind="error")
    assert choose(wrong, group(wrong)).kind == "none"


def test_reference_only_where_the_method_allows_it():
    wrong = rollout(0, "5", 0.0, reference="4")
    assert choose(wrong, group(wrong)).kind == "none"
    assert choose(wrong, group(wrong), sources=("sibling", "reference")).solution == "4"


def test_leaking_feedback_can_be_forbidden():
    wrong = rollout(0, "5", 0.0, "the answer is 4", leaks=True)
    assert choose(wrong, group(wrong)).leaks_answer
    assert choose(wrong, group(wrong), allow_leaks=False).kind == "none"


def test_feedback_beside_a_solution():
    wrong, right = rollout(0, "5", 0.0, "too large"), rollout(1, "4", 1.0)
    context = choose(wrong, group(wrong, right), with_feedback=True)
    assert (context.kind, context.solution, context.feedback) == ("sibling", "4", "too large")


def test_buffer_leaves_out_its_own_text():
    wrong = rollout(0, "5", 0.0)
    assert choose(wrong, group(wrong), sources=("buffer",), stored=["5", "4"]).solution == "4"


def test_unknown_source_is_named():
    wrong = rollout(0, "5", 0.0)
    with pytest.raises(ValueError, match="sources: 'oracle'"):
        choose(wrong, group(wrong), sources=("oracle",))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a\nb</think>4", "4"),
        ("x<think>never closed", "x"),
        ("4", "4"),
        ("opened by the prompt</think>4", "4"),
        ("<think>a</think><think>b</think> 4 ", "4"),
    ],
)
def test_thinking_is_stripped_from_what_is_shown(text, left):
    assert strip_thinking(text) == left
