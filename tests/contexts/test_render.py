import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.contexts import Renderer
from errata.records import Earlier, Rollout, TeacherContext, Verdict


def rollout(prompt="What is 2+2?", completion="5", task=None):
    return Rollout(
        0,
        "p",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}],
        completion,
        Verdict(0.0),
        row={"task": task},
    )


def text_of(rendered):
    return rendered.prompt[-1]["content"]


FULL = TeacherContext(
    "sibling",
    solution="4",
    more_solutions=("four", "IV"),
    feedback="too large",
    earlier=(Earlier("9", "far too large"), Earlier("6", "still too large")),
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


def test_opsd_wording_shows_the_solution_and_forbids_to_quote_it():
    """arXiv 2601.18734, section 3, and its release's data_collator.py: the sentence is ours, what it asks for is theirs."""
    text = text_of(Renderer("opsd").render(rollout(), TeacherContext("reference", solution="2+2=4")))
    problem, solution, last = text.index("What is 2+2?"), text.index("\n2+2=4\n"), text.index("do not quote")
    assert problem < solution < last
    for asked in ("step by step", "in your own words", "reach the same result", "take them back"):
        assert asked in text[solution:]
    nothing = text_of(Renderer("opsd").render(rollout(), TeacherContext("feedback", feedback="too large")))
    assert "too large" in nothing
    assert "solution" not in nothing


def test_a_task_without_a_template_of_its_own_takes_the_default():
    shown = TeacherContext("reference", solution="2+2=4")
    renderer = Renderer({"rulebook": "house"}, default="opsd")
    assert "do not quote" in text_of(renderer.render(rollout(task="math"), shown))
    assert text_of(renderer.render(rollout(task="rulebook/sharpen"), shown)) == "What is 2+2?\nsolved:2+2=4"


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


def test_everything_at_once_in_sdpos_wording():
    assert text_of(Renderer("sdpo").render(rollout(), FULL)) == (
        "What is 2+2?\nCorrect solutions:\n\nSolution 1:\n4\n\nSolution 2:\nfour\n\nSolution 3:\nIV\n\n\n"
        "The following are earlier unsuccessful attempts, each with the feedback it got:\n\n"
        "Attempt 1:\n9\nFeedback on it:\nfar too large\n\n"
        "Attempt 2:\n6\nFeedback on it:\nstill too large\n\n\n"
        "The following is feedback from your unsuccessful earlier attempt:\n\ntoo large\n\n\n\n"
        "Correctly solve the original question.\n"
    )


def test_everything_at_once_in_the_houses_wording():
    assert text_of(Renderer("house").render(rollout(), FULL)) == (
        "What is 2+2?\nsolved:4\nsolved:four\nsolved:IV\ntried:9\ntold:far too large\ntried:6\ntold:still too large\n"
        "tried:5\ntold:too large"
    )


@pytest.mark.parametrize(
    ("context", "text"),
    [
        (TeacherContext("reference", solution="4"), "What is 2+2?\nsolved:4"),
        (TeacherContext("feedback", feedback="no"), "What is 2+2?\ntried:5\ntold:no"),
        (TeacherContext("x", solution="4", feedback="no"), "What is 2+2?\nsolved:4\ntried:5\ntold:no"),
    ],
)
def test_the_wording_the_house_policy_was_trained_with(context, text):
    assert text_of(Renderer("house").render(rollout(), context)) == text


def test_a_template_that_knows_one_solution_gets_all_of_them_numbered():
    assert text_of(Renderer("{{ solution }}").render(rollout(), FULL)) == (
        "Solution 1:\n4\n\nSolution 2:\nfour\n\nSolution 3:\nIV"
    )


def test_the_attempts_thinking_is_kept_where_the_context_says_so():
    renderer, thoughtful = Renderer("{{ attempt }}|{{ feedback }}"), rollout(completion="<think>hm</think>5")
    assert text_of(renderer.render(thoughtful, TeacherContext("feedback", feedback="no"))) == "5|no"
    kept = TeacherContext("feedback", feedback="no", keep_thinking=True)
    assert text_of(renderer.render(thoughtful, kept)) == "<think>hm</think>5|no"


def test_a_template_for_each_task():
    renderer = Renderer(
        {"rulebook": "house {{ solution }}", "rulebook/sharpen": "sharp {{ solution }}", "m": "m {{ prompt }}"}
    )
    shown = TeacherContext("reference", solution="4")
    texts = {
        task: text_of(renderer.render(rollout(task=task), shown))
        for task in ("rulebook/new-rule", "rulebook/sharpen", "rulebooks", "m", "math", None)
    }
    sdpo = text_of(Renderer("sdpo").render(rollout(), shown))
    assert texts == {
        "rulebook/new-rule": "house 4",
        "rulebook/sharpen": "sharp 4",
        "rulebooks": sdpo,
        "m": "m What is 2+2?",
        "math": sdpo,
        None: sdpo,
    }


def test_a_template_without_room_for_the_history_is_refused_where_there_is_one():
    for template in ("sdpo", "house", "{{ earlier }}", {"a": "house"}):
        Renderer(template, history=True)
    with pytest.raises(
        ValueError, match=r"context_template: '\{\{ feedback \}\}' has no place for the earlier attempts"
    ):
        Renderer({"a": "house", "b": "{{ feedback }}"}, history=True)
    Renderer("{{ feedback }}")


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


LETTERS = "abcdefgst"  # earlier attempt and feedback, twice; attempt, feedback; third, second and first solution
SECTIONS = ["earlier"] * 4 + ["attempt", "feedback", "more_solutions", "more_solutions", "solution"]


def rendered_in(budget, lengths):
    """All sections at once, each of one letter repeated, in the order in which they are cut."""
    a, b, c, d, attempt, feedback, third, second, first = (
        letter * n for letter, n in zip(LETTERS, lengths, strict=True)
    )
    template = (
        "{% for t in earlier %}{{ t.attempt }}{{ t.feedback }}{% endfor %}{{ attempt }}{{ feedback }}"
        "{% for s in solutions | reverse %}{{ s }}{% endfor %}"
    )
    context = TeacherContext(
        "sibling", "", first, (second, third), feedback, earlier=(Earlier(a, b), Earlier(c, d)), keep_thinking=True
    )
    renderer = Renderer(template, max_tokens=budget, count_tokens=characters)
    return renderer.render(rollout(completion=attempt), context)


@pytest.mark.parametrize(
    ("room", "left", "cut"),
    [
        (360, [letter * 40 for letter in LETTERS], ()),
        (359, ["a" * 16 + " [...] " + "a" * 16, *(letter * 40 for letter in LETTERS[1:])], ("earlier",)),
        (320, [letter * 40 for letter in LETTERS[1:]], ("earlier",)),
        (200, [letter * 40 for letter in LETTERS[4:]], ("earlier",)),
        (160, [letter * 40 for letter in LETTERS[5:]], ("earlier", "attempt")),
        (120, [letter * 40 for letter in LETTERS[6:]], ("earlier", "attempt", "feedback")),
        (40, ["t" * 40], ("earlier", "attempt", "feedback", "more_solutions")),
        (20, ["t" * 7 + " [...] " + "t" * 6], ("earlier", "attempt", "feedback", "more_solutions", "solution")),
    ],
)
def test_the_order_of_cutting_by_hand(room, left, cut):
    rendered = rendered_in(room + len("Be brief."), [40] * 9)
    assert text_of(rendered) == "".join(left)
    assert (rendered.cut, rendered.dropped) == (cut, False)


@given(st.integers(10, 600), st.lists(st.integers(1, 100), min_size=9, max_size=9))
def test_nothing_is_cut_while_something_less_needed_is_left_whole(budget, lengths):
    rendered = rendered_in(budget, lengths)
    text = text_of(rendered)
    assert characters(rendered.prompt) <= budget
    whole = [letter * n in text for letter, n in zip(LETTERS, lengths, strict=True)]
    cut = whole.count(False)
    assert whole == [False] * cut + [True] * (9 - cut)
    assert rendered.cut == tuple(dict.fromkeys(SECTIONS[:cut]))
    assert rendered.dropped == (cut == 9 and not set(text) & set(LETTERS.replace("e", "")))


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
