"""What the context settings make every method show: demonstrations, feedback history, thinking."""

import random

import pytest

from errata import methods
from errata.experience import Experience, FeedbackHistory
from errata.records import Group, Rollout, Verdict

TAUGHT = [name for name in methods.names() if methods.get(name).uses_teacher]
BY_SIBLINGS = [name for name in TAUGHT if "sibling" in methods.get(name).sources]


def attempt(index, text, reward, feedback="", *, leaks=False, reference=None):
    verdict = Verdict(reward, feedback, "trace" if feedback else "", leaks)
    return Rollout(index, "p", "2+2?", text, verdict, length=len(text), reference=reference)


def shown(method, group, experience, index=0):
    return method.context(group.rollouts[index], group, memory=experience, epoch=9.0, rng=random.Random(0))


def step(experience, number, *rollouts):
    group = Group("p", rollouts)
    experience.observe([group], step=number)
    return group


@pytest.mark.parametrize("name", BY_SIBLINGS)
def test_every_method_shows_several_demonstrations(name):
    method = methods.get(name, demonstrations=2)
    experience = method.memory()
    group = step(
        experience, 0, attempt(0, "5", 0.0), attempt(1, "four", 1.0), attempt(2, "4", 1.0), attempt(3, "IV!", 1.0)
    )
    context = shown(method, group, experience)
    # DRIFT in warm-up has no entropies here and takes the first sampled, as the others do.
    assert context.solutions == ("four", "4")
    assert len(shown(methods.get(name), group, experience).solutions) == 1


@pytest.mark.parametrize("name", TAUGHT)
def test_every_method_remembers_earlier_attempts_where_it_is_to_show_them(name):
    method = methods.get(name, history=1, sources=("feedback",))
    experience = method.memory()
    assert isinstance(experience.history, FeedbackHistory)
    assert "history" in experience.state_dict()
    first = step(experience, 0, attempt(0, "5", 0.0, "too large"), attempt(1, "3", 0.0, "too small"))
    assert shown(method, first, experience).earlier == ()
    second = step(experience, 1, attempt(0, "3", 0.0, "too small"), attempt(1, "7", 0.0, "far too large"))
    # Not its own copy, nor what the sibling of this very step was told.
    assert [(e.attempt, e.feedback) for e in shown(method, second, experience).earlier] == [("5", "too large")]
    assert [(e.attempt, e.feedback) for e in shown(method, second, experience, 1).earlier] == [("3", "too small")]
    assert methods.get(name).memory().history is None


def test_without_a_teacher_nothing_is_remembered():
    assert methods.get("grpo").memory().history is None


def test_an_experience_of_ones_own_without_a_history_is_told_so():
    class Forgetful(type(methods.get("sdpo"))):
        def memory(self):
            return Experience()

    method = Forgetful(history=1)
    with pytest.raises(ValueError, match=r"history: Forgetful.memory\(\) keeps none; give it an attribute history = "):
        shown(method, Group("p", (attempt(0, "5", 0.0, "no"),)), method.memory())


def test_a_forbidden_leak_is_not_shown_later_either():
    method = methods.get("sdpo", history=2, allow_leaks=False)
    experience = method.memory()
    step(experience, 0, attempt(0, "5", 0.0, "it is 4", leaks=True), attempt(1, "3", 0.0, "too small"))
    group = step(experience, 1, attempt(0, "7", 0.0, "too large"))
    assert [e.attempt for e in shown(method, group, experience).earlier] == ["3"]


def test_drift_draws_several_from_its_buffer():
    for kind in ("released", "paper"):
        method = methods.get("drift", demonstrations=2, buffer=kind, warmup_steps=0)
        experience = method.memory()
        step(experience, 0, attempt(0, "4", 1.0), attempt(1, "four", 1.0), attempt(2, "IV", 1.0))
        group = step(experience, 1, attempt(0, "5", 0.0), attempt(1, "6", 0.0))
        context = shown(method, group, experience)
        assert context.kind == "buffer"
        assert len(set(context.solutions)) == 2
        assert set(context.solutions) <= {"4", "four", "IV"}
        assert experience.buffer.hits == 1


def test_drift_keeps_thinking_in_its_buffer_on_request():
    for keep, text in ((False, "4"), (True, "<think>2</think>4")):
        method = methods.get("drift", keep_thinking=keep, warmup_steps=0)
        experience = method.memory()
        step(experience, 0, attempt(0, "<think>2</think>4", 1.0))
        group = step(experience, 1, attempt(0, "5", 0.0))
        context = shown(method, group, experience)
        assert (context.solution, context.keep_thinking) == (text, keep)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("demonstrations", 0), ("demonstrations", 1.5), ("demonstrations", True), ("history", -1), ("history", "2")],
)
def test_bad_settings_are_named(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}: must be a whole number of at least"):
        methods.get("sdpo", **{setting: value})
