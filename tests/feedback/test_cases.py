"""Verdicts on hand-labelled answers by kind: no wrong answer may be right, and few right ones wrong.

``python tests/feedback/test_cases.py`` prints, for each file, how many verdicts are right, wrongly right and wrongly wrong.
"""

import json
from pathlib import Path

import pytest

from errata.feedback import sandbox
from errata.feedback.choice import ChoiceVerifier
from errata.feedback.code import CodeVerifier
from errata.feedback.math import MathVerifier
from errata.feedback.tool_call import ToolCallVerifier

CASES = Path(__file__).parent / "cases"
# Labels that `cases/disputed.md` judges otherwise: file, gold, completion.
DISPUTED = {("math", "5", r"\boxed{\{5\}}")}


def load(name):
    return json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))


def math(name):
    cases = load(name)
    verdicts = MathVerifier(timeout_s=60)(
        completions=[c["completion"] for c in cases], answer=[c["gold"] for c in cases]
    )
    return [((name, c["gold"], c["completion"]), c["score"], v.score, v) for c, v in zip(cases, verdicts, strict=True)]


def choice(name):
    cases = load(name)
    first = ["A" for _ in cases]
    verdicts = ChoiceVerifier()(
        completions=[c["completion"] for c in cases], answer=first, options=[c["options"] for c in cases]
    )
    return [((name, c["completion"]), c["letter"], v.info["chosen"], v) for c, v in zip(cases, verdicts, strict=True)]


def tool(name):
    prompts, cases = load("tool")["prompts"], load(name)
    cases = cases["cases"] if isinstance(cases, dict) else cases
    verdicts = ToolCallVerifier()(
        prompts=[prompts[c["prompt"]] for c in cases],
        completions=[c["completion"] for c in cases],
        answer=[c["answer"] for c in cases],
    )
    return [((name, c["kind"], c["completion"]), c["score"], v.score, v) for c, v in zip(cases, verdicts, strict=True)]


def code(name):
    cases = load(name)
    verdicts = CodeVerifier(unsafe_local=not sandbox.isolation(), timeout_s=30)(
        completions=[c["completion"] for c in cases],
        tests=[c["tests"] for c in cases],
        function=[c["function"] for c in cases],
    )
    return [((name, c["kind"], c["completion"]), c["score"], v.score, v) for c, v in zip(cases, verdicts, strict=True)]


FILES = [(judge, name) for judge in (math, choice, tool, code) for name in (judge.__name__, f"{judge.__name__}_more")]


@pytest.mark.parametrize(("judge", "name"), FILES, ids=[name for _, name in FILES])
def test_every_verdict_is_a_careful_readers(judge, name):
    if judge is math:
        pytest.importorskip("sympy")
    wrong = {case: (label, got) for case, label, got, _ in judge(name) if got != label}
    assert set(wrong) <= DISPUTED, wrong


@pytest.mark.parametrize(("judge", "name"), FILES, ids=[name for _, name in FILES])
def test_feedback_on_a_wrong_answer_says_what_is_wrong_without_the_whole_attempt(judge, name):
    if judge is math:
        pytest.importorskip("sympy")
    for case, label, _, verdict in judge(name):
        if verdict.score:
            continue
        feedback = verdict.feedback
        assert 15 < len(feedback) <= 2000, (case, feedback)
        completion = case[-1]
        if len(completion) > 300:
            assert completion not in feedback
        if judge is math and not verdict.leaks_answer:
            assert "The right answer is" not in feedback
        assert label is not None or judge is choice


if __name__ == "__main__":
    for judge, name in FILES:
        results = judge(name)
        wrongly_right = sum(bool(got) and got != label for _, label, got, _ in results)
        wrongly_wrong = sum(not got and got != label for _, label, got, _ in results)
        right = len(results) - wrongly_right - wrongly_wrong
        print(f"{name}: {right} right, {wrongly_right} wrongly right, {wrongly_wrong} wrongly wrong of {len(results)}")
