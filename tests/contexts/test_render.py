import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.contexts import Renderer
from errata.records import Rollout, TeacherContext, Verdict


def rollout(prompt="What is 2+2?", completion="5"):
    return Rollout(
        0,
        "p",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}],
        completion,
        Verdict(0.0),
    )


def characters(prompt):
    return sum(len(m["content"]) for m in prompt)


def test_sdpo_wording_exactly_as_released():
    both = TeacherContext("sibling", solution="4", feedback="too large")
    rendered = Renderer("sdpo").render(rollout(), both)
    assert rendered.prompt[0] == {"role": "system", "content": "Be brief."}
    # TRL's templates: "{prompt}{solution}{feedback}\n\nCorrectly solve the original question.\n" with
    # "\nCorrect solution:\n\n{...}\n\n" and "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{...}\n\n"
    assert rendered.prompt[1]["content"] == (
        "What is 2+2?\nCorrect solution:\n\n4\n\n\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
        "too large\n\n\n\nCorrectly solve the original question.\n"
    )


def test_sdpo_wording_equals_trls_own_templates():
    from trl.experimental.sdpo import SDPOConfig

    fields = SDPOConfig.__dataclass_fields__
    solution = fields["solution_template"].default.format(successful_previous_attempt="4")
    feedback = fields["feedback_template"].default.format(feedback_raw="too large")
    for context, shown in [
        (TeacherContext("sibling", solution="4"), {"solution": solution, "feedback": ""}),
        (TeacherContext("feedback", feedback="too large"), {"solution": "", "feedback": feedback}),
        (TeacherContext("sibling", solution="4", feedback="too large"), {"solution": solution, "feedback": feedback}),
    ]:
        expected = fields["reprompt_template"].default.format(prompt="What is 2+2?", **shown)
        assert Renderer("sdpo").render(rollout(), context).prompt[-1]["content"] == expected


def test_a_template_of_ones_own_sees_the_attempt():
    rendered = Renderer("{{ prompt }} You said {{ attempt }}: {{ feedback }}").render(
        rollout(completion="<think>hm</think>5"), TeacherContext("feedback", feedback="no")
    )
    assert rendered.prompt[-1]["content"] == "What is 2+2? You said 5: no"


def test_plain_text_prompts():
    plain = Rollout(0, "p", "2+2=", "5", Verdict(0.0))
    assert (
        Renderer("{{ prompt }}|{{ solution }}").render(plain, TeacherContext("reference", solution="4")).prompt
        == "2+2=|4"
    )


def test_model_text_is_not_a_template():
    rendered = Renderer("{{ prompt }}{{ feedback }}").render(
        rollout(), TeacherContext("feedback", feedback="{{ 7*7 }}")
    )
    assert rendered.prompt[-1]["content"].endswith("{{ 7*7 }}")


@given(st.integers(20, 400), st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_budget_is_kept_and_the_problem_never_cut(budget, solution, feedback):
    template = "{{ prompt }}\n{{ solution }}\n{{ feedback }}\nGo."
    renderer = Renderer(template, max_tokens=budget, count_tokens=characters)
    rendered = renderer.render(rollout(), TeacherContext("sibling", solution=solution, feedback=feedback))
    if rendered.dropped and not rendered.cut:
        assert rendered.prompt == rollout().prompt
        return
    text = rendered.prompt[-1]["content"]
    assert characters(rendered.prompt) <= budget
    assert text.startswith("What is 2+2?\n")
    assert text.endswith("\nGo.")
    if not rendered.cut:
        assert solution in text
        assert feedback in text


def test_feedback_is_cut_before_the_solution_and_loses_its_middle():
    renderer = Renderer("{{ solution }}|{{ feedback }}", max_tokens=60, count_tokens=characters)
    rendered = renderer.render(rollout(), TeacherContext("sibling", solution="s" * 20, feedback="a" * 50 + "z" * 50))
    assert rendered.cut == ("feedback",)
    text = rendered.prompt[-1]["content"]
    assert text.startswith("s" * 20 + "|a")
    assert " [...] " in text
    assert text.endswith("z")


def test_dropped_when_nothing_fits():
    renderer = Renderer("{{ prompt }}{{ solution }}", max_tokens=5, count_tokens=characters)
    rendered = renderer.render(rollout(), TeacherContext("sibling", solution="4"))
    assert rendered.dropped
    assert rendered.prompt == rollout().prompt


@pytest.mark.parametrize(
    ("template", "message"),
    [("sdop", "preset"), ("missing.jinja", "no file"), ("{% if %}", "line 1")],
)
def test_bad_templates_name_the_mend(template, message):
    with pytest.raises(ValueError, match=f"context_template.*{message}"):
        Renderer(template)


def test_a_prompt_that_does_not_end_with_the_user_is_refused():
    odd = Rollout(0, "p", [{"role": "assistant", "content": "hi"}], "5", Verdict(0.0))
    with pytest.raises(ValueError, match="must end with a user turn"):
        Renderer("sdpo").render(odd, TeacherContext("reference", solution="4"))
