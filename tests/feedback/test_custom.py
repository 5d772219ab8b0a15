"""What a verifier may return, and where it may come from."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from errata.feedback import as_verdicts, combine_verdicts, completion_text, load_verifier
from errata.feedback.custom import answer_text, verifier_name
from errata.records import Verdict


def test_every_kind_of_value_mixed():
    values = [1, 0.5, None, True, {"score": 0, "feedback": "no", "kind": "trace"}, Verdict(0.25, "so", kind="critique")]
    assert as_verdicts(values, n=6, name="v") == [
        Verdict(1.0),
        Verdict(0.5),
        Verdict(None),
        Verdict(1.0),
        Verdict(0.0, "no", kind="trace"),
        Verdict(0.25, "so", kind="critique"),
    ]


def test_arrays_and_tensors_are_lists_of_numbers():
    expected = [Verdict(0.0), Verdict(1.0)]
    assert as_verdicts(np.array([0.0, 1.0], dtype=np.float32), n=2, name="v") == expected
    assert as_verdicts(torch.tensor([0.0, 1.0]), n=2, name="v") == expected
    assert as_verdicts((np.bool_(False), np.int64(1)), n=2, name="v") == expected
    assert all(type(v.score) is float for v in as_verdicts(np.array([0, 1]), n=2, name="v"))


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_score_that_is_not_finite_is_a_failure_of_the_verifier(score):
    plain, with_feedback = as_verdicts([score, {"score": score, "info": {"model": "x"}}], n=2, name="v")
    assert (plain.score, plain.kind, plain.info["error"]) == (None, "error", f"the score is {float(score)}")
    assert with_feedback.info == {"model": "x", "error": f"the score is {float(score)}"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "verifier 'v' returned 1 verdicts for 2 completions"),
        ([1.0, 2.0, 3.0], "verifier 'v' returned 3 verdicts for 2 completions"),
        (0.5, "verifier 'v' returned 0.5; return a list"),
        (None, "verifier 'v' returned None; return a list"),
        ("ab", "verifier 'v' returned 'ab'; return a list"),
        ({"score": 1.0, "feedback": ""}, "return a list"),
        (
            [1.0, {"score": 1.0, "feedbak": "x"}],
            "verifier 'v', completion 1: unknown key 'feedbak'; did you mean 'feedback'",
        ),
        ([1.0, {"score": 1.0, "colour": "x"}], "completion 1: unknown key 'colour'; known keys: score, feedback, kind"),
        ([{"feedback": "x"}, 1.0], "completion 0: the dict has no 'score'"),
        (["1", 1.0], "completion 0: the score must be a number, None, a dict or a Verdict, not '1'"),
        ([{"score": 1.0, "feedback": None}, 1.0], "completion 0: feedback must be a str, not None"),
        ([1.0, Verdict(1.0, leaks_answer="no")], "completion 1: leaks_answer must be a bool, not 'no'"),
        ([[1.0], 1.0], "completion 0: the score must be a number"),
    ],
)
def test_what_is_none_of_these_is_named(values, message):
    with pytest.raises(ValueError, match=r"^verifier 'v'") as error:
        as_verdicts(values, n=2, name="v")
    assert message in str(error.value)


@given(st.lists(st.one_of(st.none(), st.booleans(), st.floats(), st.integers(-10, 10)), max_size=8))
def test_one_verdict_per_value_and_every_score_within_the_limit(values):
    verdicts = as_verdicts(values, n=len(values), name="v")
    assert len(verdicts) == len(values)
    for value, verdict in zip(values, verdicts, strict=True):
        kept = value is not None and -1e15 <= value <= 1e15
        assert verdict.score == (float(value) if kept else None)
        assert (verdict.kind == "error") == (value is not None and not kept)


def test_the_text_of_a_completion():
    assert completion_text("<answer>B</answer>") == "<answer>B</answer>"
    assert completion_text([{"role": "assistant", "content": "hello"}]) == "hello"
    assert completion_text([{"content": "as TRL's own examples"}]) == "as TRL's own examples"
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]},
        {"role": "tool", "name": "add", "content": "7"},
        {"role": "assistant", "content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "7."}]},
        {"role": "assistant", "content": "Done."},
    ]
    assert completion_text(turns) == "It is 7.\nDone."
    for wrong in (None, 3, ["text"]):
        with pytest.raises(ValueError, match="completion: neither a text nor a list of chat messages"):
            completion_text(wrong)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("no thinking", "no thinking"),
        ("<think>A?</think> B", " B"),
        ("A? the prompt opened it</think>B", "B"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>never ended", ""),
    ],
)
def test_thinking_is_no_answer(text, answer):
    assert answer_text(text) == answer


def test_names():
    class Grader:
        def __call__(self, **_):
            return []

    assert verifier_name(completion_text) == "completion_text"
    assert verifier_name(functools.partial(completion_text, 1)) == "completion_text"
    assert verifier_name(Grader()) == "Grader"


# -- combining --


def test_combined_verdicts_add_scores_and_join_feedback():
    both = combine_verdicts([Verdict(1.0, "good", "style"), Verdict(0.5, "slow", "time", True)], [1.0, 2.0])
    assert both == Verdict(2.0, "good\nslow", "style+time", True)


def test_a_failed_verifier_is_left_out_as_in_trl():
    failed = Verdict(None, "boom", "error", info={"error": "boom"})
    assert combine_verdicts([failed, Verdict(0.5, "slow", "time")], [1.0, 1.0]).score == 0.5
    assert combine_verdicts([failed, Verdict(0.5, "slow", "time")], [1.0, 1.0]).feedback == "slow"
    assert combine_verdicts([failed, failed], [1.0, 1.0]) == failed
    assert combine_verdicts([Verdict(None), Verdict(None)], [1.0, 1.0]) == Verdict(None)


def test_combining_needs_as_many_weights_as_verdicts():
    with pytest.raises(ValueError, match=r"weights: 1 for 2 verifiers"):
        combine_verdicts([Verdict(1.0), Verdict(1.0)], [1.0])


# -- loading by name --


def test_load_from_a_module_and_from_a_file(tmp_path):
    assert load_verifier("errata.feedback.custom:completion_text") is completion_text
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n  x: int\n"
        "def score(completions, **_):\n  return [float(D(1).x)] * len(completions)\nLIMIT = 3\n"
    )
    assert load_verifier(f"{file}:score")(completions=["a", "b"]) == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"has no 'scores'; did you mean 'score'\?"):
        load_verifier(f"{file}:scores")
    with pytest.raises(ValueError, match=r"is a int, not a function"):
        load_verifier(f"{file}:LIMIT")
    file.write_text("import no_such_package\n")
    with pytest.raises(
        ValueError, match=r"mine.py' does not import: ModuleNotFoundError: No module named 'no_such_package'"
    ):
        load_verifier(f"{file}:score")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("score", "is not of the form"),
        (":score", "is not of the form"),
        ("mine.py:", "is not of the form"),
        ("nowhere/mine.py:score", "no file 'nowhere/mine.py'"),
        ("no_such_package.rewards:score", "'no_such_package.rewards' does not import: ModuleNotFoundError"),
    ],
)
def test_a_spec_that_names_nothing(spec, message):
    with pytest.raises(ValueError, match=r"^verifier: ") as error:
        load_verifier(spec)
    assert message in str(error.value)
