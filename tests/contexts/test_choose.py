import pytest

from errata.contexts import choose
from errata.records import Earlier, Group, Rollout, Verdict, strip_thinking


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


# -- several demonstrations ------------------------------------------------------------------------------------------


def test_demonstrations_are_different_successes_as_picked():
    wrong = rollout(0, "5", 0.0)
    right = [rollout(i, text, 1.0, length=n) for i, (text, n) in enumerate([("4", 3), ("4", 1), ("four", 2)], start=1)]
    shortest = choose(
        wrong, group(wrong, *right), demonstrations=3, pick=lambda found: min(found, key=lambda r: r.length)
    )
    assert shortest.solutions == ("4", "four")  # rollout 2 is the shortest; rollout 1 says the same as it
    assert shortest.why == "rollouts 2, 3 of its group succeeded (rewards 1, 1)"
    first = choose(wrong, group(wrong, *right), demonstrations=1)
    assert (first.solution, first.more_solutions) == ("4", ())
    assert first.why == "rollout 1 of its group succeeded (reward 1)"


def test_demonstrations_of_the_buffer():
    wrong = rollout(0, "5", 0.0)
    stored = ["four", "5", "4", "four", "IV"]
    assert choose(wrong, group(wrong), sources=("buffer",), stored=stored, demonstrations=2).solutions == ("four", "4")


def test_a_success_of_which_nothing_would_be_shown_is_no_demonstration():
    wrong, thought, right = rollout(0, "5", 0.0, "no"), rollout(1, "<think>4", 1.0), rollout(2, "4", 1.0)
    assert choose(wrong, group(wrong, thought, right)).solution == "4"
    assert choose(wrong, group(wrong, thought)).kind == "feedback"
    assert choose(wrong, group(wrong, thought), keep_thinking=True).solution == "<think>4"


def test_thinking_is_kept_on_request():
    wrong, right = rollout(0, "<think>hm</think>5", 0.0, "no"), rollout(1, "<think>2 and 2</think>4", 1.0)
    stripped = choose(wrong, group(wrong, right))
    assert (stripped.solution, stripped.keep_thinking) == ("4", False)
    kept = choose(wrong, group(wrong, right), keep_thinking=True)
    assert (kept.solution, kept.keep_thinking) == ("<think>2 and 2</think>4", True)
    shown = choose(wrong, group(wrong), sources=("buffer",), stored=["<think>2</think>4"], keep_thinking=True)
    assert shown.solution == "<think>2</think>4"


# -- history -----------------------------------------------------------------------------------------------------------

PAST = (Earlier("7", "too large"), Earlier("1", "the answer is 4", leaks_answer=True), Earlier("3", "too small"))


def test_history_is_the_newest_attempts_beside_the_present_feedback():
    wrong = rollout(0, "5", 0.0, "no")
    context = choose(wrong, group(wrong), earlier=PAST, history=2)
    assert context.earlier == PAST[1:]
    assert context.leaks_answer  # what the older one was told
    assert context.why == "trace on its own attempt; earlier attempts: 2"
    assert choose(wrong, group(wrong), earlier=PAST).earlier == ()
    assert choose(wrong, group(wrong), earlier=PAST, history=9).earlier == PAST


def test_history_never_shows_copies_of_the_attempt_nor_forbidden_leaks():
    wrong = rollout(0, "<think>so</think>3", 0.0, "no")
    assert choose(wrong, group(wrong), earlier=PAST, history=2).earlier == PAST[:2]
    safe = choose(wrong, group(wrong), earlier=PAST, history=2, allow_leaks=False)
    assert (safe.earlier, safe.leaks_answer) == (PAST[:1], False)


def test_history_needs_present_feedback_to_stand_beside():
    silent, right = rollout(0, "5", 0.0), rollout(1, "4", 1.0)
    assert choose(silent, group(silent), earlier=PAST, history=2).kind == "none"
    told = rollout(0, "5", 0.0, "no")
    assert choose(told, group(told, right), earlier=PAST, history=2).earlier == ()
    beside = choose(told, group(told, right), earlier=PAST, history=1, with_feedback=True)
    assert (beside.solution, beside.feedback, beside.earlier) == ("4", "no", PAST[2:])


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


def test_hindsight_shows_at_each_turn_what_followed_it():
    turns = (
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "b"},
    )
    verdict = Verdict(0.0, "wrong", "trace", turn_feedback=("look first",))
    failed = Rollout(0, "p", "q", "a\n-> t\nb", verdict, turns=turns)
    context = choose(failed, group(failed), sources=["hindsight"])
    assert (context.kind, context.by_turn) == ("hindsight", ("look first\n-> t\nwrong", "wrong"))
    assert context.is_informative
    solved = Rollout(0, "p", "q", "a\n-> t\nb", Verdict(1.0, "right"), turns=turns)
    assert choose(solved, group(solved), sources=["hindsight"]).by_turn == ("-> t", "")


def test_hindsight_of_one_turn_is_its_feedback_and_nothing_where_it_is_solved():
    wrong, right = rollout(0, "5", 0.0, "4, not 5"), rollout(1, "4", 1.0, "right")
    assert choose(wrong, group(wrong, right), sources=["hindsight"]).by_turn == ("4, not 5",)
    assert choose(right, group(wrong, right), sources=["hindsight"]).kind == "none"


def test_hindsight_without_leaks_keeps_what_tools_said():
    turns = (
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "b"},
    )
    verdict = Verdict(0.0, "it is 7", "trace", True, turn_feedback=("it is 7",))
    failed = Rollout(0, "p", "q", "a\n-> t\nb", verdict, turns=turns)
    assert choose(failed, group(failed), sources=["hindsight"], allow_leaks=False).by_turn == ("-> t", "")
