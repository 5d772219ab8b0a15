"""Tool calls as text: a parser with positions, the benchmark's grading, complaints against the documented tools."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.feedback.tool_call import ToolCallVerifier
from errata.feedback.tool_text import Argument, Call, gold_calls, read_calls, read_tools, written

PROMPT = """You have access to the following tools:
Name: Library
Description: A lending library
Documentation:
findBooks: Look for books.
Note: this description goes on.
Parameters: {"words": "Required. string. Words.", "language": "string. One of: [en, de]. It.", "limit": "integer. Max."}
Output: Successful response.
 - Format: application/json
 - Structure: Object{books}
lendBook: Lend a book.
Parameters: {"bookId": "Required. integer.", "reader": "Object. Who.", "days": "number.", "tags": "Array[string]. x"}
Output: Successful response.
 - Format: application/json
 - Structure: Object{loan}
openingHours: When it is open.
Parameters: {}
Output: Hours.

Use the following format:
Thought: think
Action: the tool
Action Input: JSON
"""


def action(name, text):
    return f"Thought: so\nAction: {name}\nAction Input: {text}"


# -- reading --


def test_several_actions_nested_and_multi_line_input():
    text = """Thought: first lend it.
Action: lendBook
Action Input: {
  "bookId": 7,
  "reader": {"name": "A} \\"quote\\" {B", "ids": [1, [2, {"deep": null}]]}
}
Observation: {"loan": 3}
Thought: then look.
**Action:** `findBooks`
**Action Input:** {"words": "Action: x\\nAction Input: {}"}
"""
    assert read_calls(text).calls == (
        Call("lendBook", {"bookId": 7, "reader": {"name": 'A} "quote" {B', "ids": [1, [2, {"deep": None}]]}}),
        Call("findBooks", {"words": "Action: x\nAction Input: {}"}),
    )
    assert read_calls(text).broken == read_calls(text).sloppy == ()


@pytest.mark.parametrize(
    ("text", "arguments", "note"),
    [
        ("", {}, "is empty; write {} for no arguments"),
        ('"{\\"a\\": 1}"', {"a": 1}, "is JSON inside a string"),
        ('{"a": 1}}', {"a": 1}, "is followed by '}'"),
        ('{"a": 1, "a": 2}', {"a": 2}, "gives 'a' twice"),
    ],
)
def test_what_deviates_but_can_be_read(text, arguments, note):
    reading = read_calls(action("t", text))
    assert reading.calls == (Call("t", arguments),)
    assert reading.sloppy == (f"The input of 't' {note}.",)


def test_a_code_fence_is_no_deviation():
    assert read_calls(action("t", '\n```json\n{"a": 1}\n```')).calls == (Call("t", {"a": 1}),)
    assert read_calls(action("t", '\n```json\n{"a": 1}\n```')).sloppy == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "{'a': 1}",
            "not valid JSON: Expecting property name enclosed in double quotes at line 1, column 2, near \"'a': 1}\"",
        ),
        ('{"a": 1', "not valid JSON: Expecting ',' delimiter at line 1, column 8, where it ends"),
        ('{"a": 1,\n  "b" 2}', "not valid JSON: Expecting ':' delimiter at line 2, column 7, near '2}'"),
        ('{"a": tru}', "not valid JSON: Expecting value at line 1, column 7, near 'tru}'"),
        ('{"a": NaN}', "not valid JSON: NaN is no JSON value"),
        ("None", "not valid JSON: Expecting value at line 1, column 1, near 'None'"),
        ("[1, 2]", "a JSON array, not an object"),
        ("7", "a JSON number, not an object"),
        ('"seven"', "a JSON string, not an object"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
    ],
)
def test_broken_json_is_reported_with_its_position(text, problem):
    reading = read_calls(action("t", text) + "\n" + action("u", "{}"))
    assert reading.broken == (f"The input of 't' is {problem}.",)
    assert reading.calls == (Call("u", {}),)


def test_actions_and_inputs_without_each_other():
    assert read_calls("Action: a\nAction: b\nAction Input: {}\nAction Input: {}\nAction: c").broken == (
        "The action 'a' has no 'Action Input:' line.",
        "An 'Action Input:' has no 'Action:' line before it.",
        "The action 'c' has no 'Action Input:' line.",
    )
    assert read_calls("I would take Action: none.") == read_calls("")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
calls = st.lists(
    st.builds(
        Call, st.from_regex(r"[A-Za-z]\w{0,8}", fullmatch=True), st.dictionaries(st.text(), json_values, max_size=3)
    ),
    min_size=1,
    max_size=4,
).map(tuple)


@given(calls)
def test_what_is_written_is_read_back(some):
    reading = read_calls(written(some))
    assert reading.calls == some
    assert reading.broken == reading.sloppy == ()


@given(st.text(alphabet='Action Input:{}[]",\n0123\\ntru`*'))
def test_any_text_is_read(text):
    reading = read_calls(text)
    assert all(isinstance(c.arguments, dict) for c in reading.calls)


def test_the_documented_tools():
    tools = read_tools(PROMPT)
    assert list(tools) == ["findBooks", "lendBook", "openingHours"]
    assert tools["findBooks"] == {
        "words": Argument("string", required=True),
        "language": Argument("string", one_of=("en", "de")),
        "limit": Argument("integer"),
    }
    assert tools["lendBook"]["tags"] == Argument("array")
    assert tools["openingHours"] == {}
    assert read_tools("no tools here") == {}
    assert read_tools("Documentation:\nt: x\nParameters: {oops") == {"t": {}}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("[{", "answer: not valid JSON"),
        ("[]", "answer: must be a non-empty JSON list of calls"),
        ('{"Action": "a"}', "answer: must be a non-empty JSON list of calls"),
        ('[{"Action_Input": "{}"}]', "answer: call 1 has no 'Action'"),
        ('[{"Action": "a", "Action_Input": "{"}]', "answer: call 1: 'Action_Input' is not valid JSON"),
        ('[{"Action": "a", "Action_Input": "[]"}]', "answer: call 1: 'Action_Input' must be a JSON object"),
        ('[{"Action": "a"}]', "answer: call 1: 'Action_Input' must be a JSON object"),
    ],
)
def test_an_answer_that_cannot_be_read(answer, problem):
    with pytest.raises(ValueError, match=r"^answer: ") as error:
        gold_calls(answer)
    assert problem in str(error.value)


# -- judging --


def judge(completion, *gold, **args):
    answer = json.dumps([{"Action": n, "Action_Input": json.dumps(a)} for n, a in gold])
    (verdict,) = ToolCallVerifier(**args)(
        prompts=[[{"role": "user", "content": PROMPT}]], completions=[completion], answer=[answer]
    )
    return verdict


OWLS = ("findBooks", {"words": "owls", "limit": 2})


def test_right_in_any_spelling_of_json():
    verdict = judge(action("findBooks", '{"limit": 2.0, "words": "\\u006fwls"}'), OWLS)
    assert (verdict.score, verdict.feedback, verdict.kind) == (1.0, "", "")
    assert verdict.info == {
        "actions": ["findBooks"],
        "same_calls": True,
        "strict_format": True,
    }
    assert judge(action("findBooks", '{"limit": 2, "words": "owls"}'), OWLS).info["same_calls"]
    sloppy = judge(action("findBooks", '"{\\"words\\": \\"owls\\", \\"limit\\": 2}"'), OWLS)
    assert (sloppy.score, sloppy.kind, sloppy.info["strict_format"]) == (1.0, "format", False)


DE, EN = ("findBooks", {"words": "owls", "language": "de"}), ("findBooks", {"words": "owls", "language": "en"})


def test_the_release_merges_inputs_and_we_grade_call_by_call():
    both, twice = written([Call(*DE), Call(*EN)]), written([Call(*EN), Call(*EN)])
    turned, one = written([Call(*EN), Call(*DE)]), written([Call(*EN)])
    verdicts = {
        grading: [judge(text, DE, EN, grading=grading) for text in (both, twice, turned, one)]
        for grading in ("calls", "sdpo")
    }
    assert [v.score for v in verdicts["calls"]] == [1.0, 0.0, 1.0, 0.0]
    assert [v.score for v in verdicts["sdpo"]] == [1.0, 1.0, 0.0, 0.0]
    assert [v.info["same_calls"] for v in verdicts["sdpo"]] == [True, False, True, False]
    assert verdicts["calls"][1].feedback == (
        "Call 2, 'findBooks': its arguments are not what the question asks for: 'language' has a wrong value."
    )
    with pytest.raises(ValueError, match="grading: 'merge' is none of calls, sdpo"):
        ToolCallVerifier(grading="merge")


def test_arguments_swapped_between_calls_are_wrong():
    lend = ("lendBook", {"bookId": 7, "reader": {"name": "Ada"}})
    swapped = written([Call("findBooks", lend[1]), Call("lendBook", OWLS[1])])
    verdict = judge(swapped, OWLS, lend)
    assert (verdict.score, judge(swapped, OWLS, lend, grading="sdpo").score) == (0.0, 1.0)
    assert verdict.feedback.splitlines()[-2:] == [
        "Call 1, 'findBooks': its arguments are not what the question asks for: "
        "'words' is missing, 'limit' is missing, 'bookId' is not asked for, 'reader' is not asked for.",
        "Call 2, 'lendBook': its arguments are not what the question asks for: "
        "'bookId' is missing, 'reader' is missing, 'words' is not asked for, 'limit' is not asked for.",
    ]


def test_an_optional_call_may_be_left_out():
    gold = [OWLS, ("[Optional]openingHours", {})]
    assert judge(written([Call(*OWLS)]), *gold).score == 1.0
    assert judge(written([Call(*OWLS), Call("openingHours", {})]), *gold).score == 1.0
    assert judge(written([Call("openingHours", {})]), *gold).score == 0.0


def test_true_is_not_one_but_one_is_one_point_zero():
    assert judge(action("lendBook", '{"bookId": true}'), ("lendBook", {"bookId": 1})).score == 0.0
    assert judge(action("lendBook", '{"bookId": 1.0}'), ("lendBook", {"bookId": 1})).score == 1.0
    assert (
        judge(action("lendBook", '{"bookId": [1, {"x": 1}]}'), ("lendBook", {"bookId": [1, {"x": True}]})).score == 0.0
    )


@pytest.mark.parametrize(
    ("completion", "feedback"),
    [
        (
            action("findBook", '{"words": "owls", "limit": 2}'),
            "There is no tool 'findBook'; did you mean 'findBooks'?",
        ),
        (
            action("weather", "{}"),
            "There is no tool 'weather'; the tools are findBooks, lendBook, openingHours.",
        ),
        (
            action("findBooks", '{"limit": 2}'),
            "findBooks: the required argument 'words' is missing.\n"
            "The arguments are not what the question asks for: 'words' is missing.",
        ),
        (
            action("findBooks", '{"words": "owls", "limits": 2}'),
            "findBooks: there is no argument 'limits'; did you mean 'limit'?\n"
            "The arguments are not what the question asks for: 'limit' is missing, 'limits' is not asked for.",
        ),
        (
            action("findBooks", '{"words": "owls", "limit": "2", "language": "fr"}'),
            "findBooks: 'limit' must be of type integer, not the string \"2\".\n"
            "findBooks: 'language' must be one of en, de, not 'fr'.\n"
            "The arguments are not what the question asks for: 'language' is not asked for, 'limit' has a wrong value.",
        ),
        (
            action("findBooks", '{"words": "owls", "limit": true, "x": null}'),
            "findBooks: 'limit' must be of type integer, not the boolean true.\n"
            "findBooks: there is no argument 'x'; it takes words, language, limit.\n"
            "The arguments are not what the question asks for: 'x' is not asked for, 'limit' has a wrong value.",
        ),
        (action("openingHours", "{}"), "'openingHours' is not a tool that this question needs."),
        (
            "\n".join([action("findBooks", '{"words": "owls", "limit": 2}')] * 2),
            "'findBooks' is called too often.\nThe question needs 1 call; you made 2.",
        ),
        (
            action("findBooks", '{"words": "owls" "limit": 2}'),
            "The input of 'findBooks' is not valid JSON: Expecting ',' delimiter at line 1, column 18, "
            "near '\"limit\": 2}'.",
        ),
        (
            "The library has two books on owls.",
            "No action could be read. Write 'Action:' and a tool's name, then on a line of its own 'Action Input:' and "
            "a JSON object.",
        ),
    ],
)
def test_feedback_on_a_wrong_attempt(completion, feedback):
    verdict = judge(completion, OWLS)
    assert (verdict.score, verdict.feedback, verdict.leaks_answer) == (0.0, feedback, False)
    assert verdict.kind == ("tool" if verdict.info["actions"] else "format")


def test_what_the_answer_itself_violates_is_not_held_against_an_attempt():
    gold = ("findBooks", {"query": "owls"})  # the data has such rows
    assert judge(action("findBooks", '{"query": "cats"}'), gold).feedback == (
        "The arguments are not what the question asks for: 'query' has a wrong value."
    )


def test_the_answer_is_shown_only_when_asked_for():
    shown = judge(action("openingHours", "{}"), OWLS, show_answer=True)
    assert shown.leaks_answer
    assert shown.feedback.endswith(
        'The right calls are:\nAction: findBooks\nAction Input: {"words": "owls", "limit": 2}'
    )
    assert not judge(written([Call(*OWLS)]), OWLS, show_answer=True).leaks_answer


def test_a_prompt_without_documented_tools_and_a_missing_column():
    verifier = ToolCallVerifier()
    answer = json.dumps([{"Action": "a", "Action_Input": {}}])
    (verdict,) = verifier(prompts=["Do it."], completions=[action("b", "{}")], answer=[answer])
    assert (verdict.score, verdict.feedback) == (0.0, "'b' is not a tool that this question needs.")
    with pytest.raises(ValueError, match="reads the column 'answer'"):
        verifier(prompts=["Do it."], completions=["x"])


@pytest.mark.parametrize("answer", [None, 7, [], [{"Action": "a", "Action_Input": 3}]])
def test_an_answer_that_is_no_list_of_calls_is_refused_by_row(answer):
    right = json.dumps([{"Action": "a", "Action_Input": {}}])
    with pytest.raises(ValueError, match=r"^answer: .* \(row 1 of the batch\)$"):
        ToolCallVerifier()(prompts=["?", "?"], completions=["x", "x"], answer=[right, answer])


def test_an_answer_may_be_a_list_already():
    answer = [{"Action": "openingHours", "Action_Input": {}}]
    (verdict,) = ToolCallVerifier()(prompts=[PROMPT], completions=[action("openingHours", "{}")], answer=[answer])
    assert verdict.score == 1.0


def test_feedback_on_many_wrong_calls_is_short():
    calls = [Call("findBooks", {"words": str(i), "x" * 500: 1}) for i in range(40)]
    feedback = judge(written(calls), *[("findBooks", {"words": "owls", "limit": i}) for i in range(40)]).feedback
    assert len(feedback) < 3000
    assert feedback.endswith(" more.")
