"""Self-evaluation: critiques become the feedback of failed rollouts, and their cost is counted."""

import pytest

from errata.feedback.critique import Critic
from errata.records import Rollout, Verdict

PROBLEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]


def rollout(index, completion, verdict, reference="It is 4."):
    return Rollout(index, "p", PROBLEM, completion, verdict, reference=reference)


ROLLOUTS = [
    rollout(0, "4", Verdict(1.0)),
    rollout(1, "<think>hm</think>5", Verdict(0.0, "not 5", kind="trace", info={"step": 1})),
    rollout(2, "6", Verdict(None, kind="error")),
    rollout(3, "7", Verdict(0.0)),
]


def words(text):
    return len(text.split())


class Model:
    """Answers with what it was asked, so that tests see the prompts."""

    def __init__(self, *answers):
        self.answers, self.calls = answers, []

    def __call__(self, prompts):
        self.calls.append(prompts)
        return list(self.answers)


def test_failed_rollouts_get_a_critique():
    model = Model("<think>2+2</think> You added one.", "Far off.")
    first, second, third, fourth = Critic(model, count_tokens=words)(ROLLOUTS)
    assert first == ROLLOUTS[0].verdict
    assert third == ROLLOUTS[2].verdict
    prompt_words = words(model.calls[0][0][0]["content"])
    assert second == Verdict(
        0.0,
        "You added one.",
        kind="critique",
        info={"step": 1, "critique_tokens": 4, "critique_prompt_tokens": prompt_words, "judged": "not 5"},
    )
    assert (fourth.feedback, fourth.info["critique_tokens"]) == ("Far off.", 2)


def test_all_failed_rollouts_are_one_batch_and_see_no_answer():
    model = Model("a", "b")
    Critic(model, count_tokens=words)(ROLLOUTS)
    (prompts,) = model.calls
    assert [[m["role"] for m in p] for p in prompts] == [["user"], ["user"]]
    text = prompts[0][0]["content"]
    assert "Task:\n2+2?\n" in text
    assert "Attempt:\n5\n" in text
    assert "What the judge said:\nnot 5\n" in text
    assert "hm" not in text
    assert "It is 4." not in text
    assert "What the judge said" not in prompts[1][0]["content"]


def test_nothing_failed_nothing_asked():
    model = Model()
    assert Critic(model, count_tokens=words)(ROLLOUTS[:1]) == [Verdict(1.0)]
    assert model.calls == []


def test_a_template_of_ones_own(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ problem }} -> {{ attempt }}, but: {{ reference }}")
    for template in (str(file), "{{ problem }} -> {{ attempt }}, but: {{ reference }}"):
        model = Model("a", "b")
        verdicts = Critic(model, count_tokens=words, template=template)(ROLLOUTS)
        assert model.calls[0][0] == [{"role": "user", "content": "2+2? -> 5, but: It is 4."}]
        assert [v.leaks_answer for v in verdicts] == [False, True, False, True]


def test_a_critique_written_with_a_leaking_feedback_in_view_leaks():
    leaking = rollout(0, "5", Verdict(0.0, "It is 4.", kind="correction", leaks_answer=True), reference=None)
    assert Critic(Model("a"), count_tokens=words)([leaking])[0].leaks_answer
    blind = Critic(Model("a"), count_tokens=words, template="{{ problem }} {{ attempt }}")
    assert not blind([leaking])[0].leaks_answer


def test_an_empty_critique_leaves_the_verdict_but_costs():
    (verdict,) = Critic(Model("<think>well"), count_tokens=words)([ROLLOUTS[1]])
    assert (verdict.feedback, verdict.kind, verdict.info["critique_tokens"]) == ("not 5", "trace", 1)


def test_wrong_templates_and_models():
    with pytest.raises(ValueError, match=r"template: no file 'nowhere\.jinja'"):
        Critic(Model(), count_tokens=words, template="nowhere.jinja")
    with pytest.raises(ValueError, match="template: line 1: "):
        Critic(Model(), count_tokens=words, template="{% if %}")
    with pytest.raises(
        ValueError, match="template: no 'solution'; it may use problem, attempt, feedback and reference"
    ):
        Critic(Model(), count_tokens=words, template="{{ solution }}")
    with pytest.raises(ValueError, match="generate: returned 1 texts for 2 prompts"):
        Critic(Model("a"), count_tokens=words)(ROLLOUTS)
