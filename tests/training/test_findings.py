"""What follows from a preflight's numbers."""

import pytest

from errata import methods
from errata.training.findings import Findings, Pairs, Problem, lines, verdicts


def answers(found, *names, own=None, **settings):
    decided = {name: methods.get(name, **settings.get(name, {})) for name in names}
    return {c.method: c.answer for c in verdicts(found, decided, own)}


def test_a_line_compares_on_the_problems_that_have_the_context():
    found = Findings(
        [Problem(0.5, True, {"sibling": 1.0}), Problem(0.25, True, {"sibling": 0.5, "own": 0.25}), Problem(0.0, False)],
        {"sibling": Pairs(2, 2, 1)},
    )
    sibling, own = lines(found)
    # leads .5 and .25: mean .375, deviation .1768, over sqrt(2) .125
    assert (sibling.kind, sibling.n, sibling.student, sibling.teacher, sibling.lead) == (
        "sibling",
        2,
        0.375,
        0.75,
        0.375,
    )
    assert sibling.error == pytest.approx(0.125)
    assert (sibling.pairs.raises, sibling.pairs.lowers) == (2, 1)
    assert (own.kind, own.n, own.lead, own.error, own.pairs.n) == ("own", 1, 0.0, None, 0)


def of_eight(teacher, student, pairs=None):
    problems = [Problem(s, False, {"own": t}) for t, s in zip(teacher, student, strict=True)]
    return Findings(problems, {"own": pairs or Pairs()})


@pytest.mark.parametrize(
    ("teacher", "student", "pairs", "answer"),
    [
        ([1, 1, 1, 1, 0, 0, 0, 0], [0] * 8, None, "yes"),  # .5, error .189
        ([1, 1, 0, 0, 0, 0, 0, 0], [0] * 8, None, "unclear"),  # .25, error .164
        ([0] * 8, [0] * 8, None, "no"),
        ([0] * 8, [0, 0, 0, 0, 0, 0, 1, 1], None, "no"),
        ([0] * 7, [0] * 7, None, "unclear"),  # too few to say no
        (
            [0] * 8,
            [0] * 8,
            Pairs(8, 8, 6),
            "unclear",
        ),  # 6 of 8 is within two standard errors of a half, and not below it
        ([0] * 8, [0] * 8, Pairs(8, 8, 4), "no"),
        # 16 places: a half and two standard errors are 12.
        ([0] * 8, [0] * 8, Pairs(16, 13, 13), "yes"),
        # Fewer are not enough for a yes, and a no would be too much while both shares are above a half.
        ([0] * 8, [0] * 8, Pairs(16, 13, 12), "unclear"),
        ([0] * 8, [0] * 8, Pairs(16, 13, 8), "no"),
        ([0] * 8, [0] * 8, Pairs(7, 7, 7), "no"),
    ],
)
def test_a_teacher_is_worth_listening_to_by_its_answers_or_by_its_tokens(teacher, student, pairs, answer):
    assert answers(of_eight(teacher, student, pairs), "distil", own="distil") == {"distil": answer}


def test_each_method_is_judged_by_the_contexts_it_would_choose():
    bad, good = {"feedback": 0.0, "reference": 1.0, "both": 0.0}, {"feedback": 0.0, "reference": 1.0}
    found = Findings([Problem(0.0, False, bad, True)] * 8 + [Problem(0.0, False, good, True)] * 8)
    assert answers(found, "grpo", "sft", "sdpo", "opsd", "distil", own="none") == {
        "grpo": "no",  # every attempt failed
        "sft": "yes",
        "sdpo": "no",  # sibling, else feedback
        "opsd": "yes",  # the reference
        "distil": "no",  # feedback before the reference
    }
    beside = {"opsd": {"with_feedback": True}}
    (opsd,) = verdicts(found, {"opsd": methods.get("opsd", **beside["opsd"])})
    assert opsd.why == "its teacher solves 0.500, the student 0.000 (16 problems)"


def test_without_any_context_or_reference_there_is_nothing():
    found = Findings([Problem(0.5, True), Problem(0.0, False)])
    assert answers(found, "grpo", "sft", "distil") == {"grpo": "yes", "sft": "no", "distil": "no"}
