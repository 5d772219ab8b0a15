"""Environments of verifiers with tools, and the tasksets of its version 0.4, against the real packages."""

import inspect
from pathlib import Path

import pytest
from transformers.utils import get_json_schema

from errata import tasks
from errata.tasks.worlds import tool_method
from errata.training.environments import guarded

WORLDS = Path(__file__).parent / "worlds"


@pytest.fixture
def of_environments(monkeypatch):
    package = pytest.importorskip("verifiers")
    if not hasattr(package, "MultiTurnEnv"):
        pytest.skip("this is verifiers 0.4")
    monkeypatch.syspath_prepend(str(WORLDS))


@pytest.fixture
def of_tasksets(monkeypatch):
    package = pytest.importorskip("verifiers")
    if hasattr(package, "MultiTurnEnv"):
        pytest.skip("this is verifiers 0.2 or 0.3")
    monkeypatch.syspath_prepend(str(WORLDS))


def call(*calls, content=""):
    """A message of the policy with calls, as TRL keeps it."""
    functions = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    return {"role": "assistant", "content": content, "tool_calls": functions}


def told(content):
    return {"role": "tool", "name": "tool", "content": content}


def verdict_of(name, world, completion):
    (verdict,) = tasks.verifier(name)(completions=[completion], environments=[world])
    return verdict


def schemas(world):
    methods = [m for n, m in inspect.getmembers(world, inspect.ismethod) if not n.startswith("_") and n != "reset"]
    return {m.__name__: get_json_schema(m)["function"] for m in methods}


# -- a tool from its schema --


def test_a_tool_is_described_as_its_schema_says():
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where,\nexactly"},
            "days": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": 3},
            "unit": {"type": "string", "enum": ["C", "F"], "description": "of the temperature"},
            "hours": {"type": "array", "items": {"type": "number"}},
        },
        "required": ["city", "unit"],
    }
    said = "The weather to come.\n\nArgs:\n    city: not read\nReturns:\n    text"
    method = tool_method("weather", said, parameters, lambda world, tool, given: f"{world} {tool} {given}")
    world = type("World", (), {"weather": method, "__str__": lambda self: "here", "reset": lambda self: None})
    assert get_json_schema(world().weather)["function"] == {
        "name": "weather",
        "description": "The weather to come.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "where, exactly"},
                "days": {"type": "integer", "nullable": True, "description": "days"},
                "unit": {"type": "string", "enum": ["C", "F"], "description": "of the temperature"},
                "hours": {"type": "array", "items": {"type": "number"}, "description": "hours"},
            },
            "required": ["city", "unit"],
        },
        "return": {"type": "string"},
    }
    assert world().weather(city="Bonn", unit="C") == "here weather {'city': 'Bonn', 'unit': 'C'}"
    limited = guarded(world, 10.0)()  # as TRL gets it
    assert get_json_schema(limited.weather) == get_json_schema(world().weather)
    assert limited.weather(city="Bonn") == "here weather {'city': 'Bonn'}"


@pytest.mark.parametrize("word", ["get-weather", "_hidden", "two words"])
def test_a_tool_whose_name_is_none_in_python_is_refused(word):
    with pytest.raises(ValueError, match=word):
        tool_method(word, "", {}, lambda *_: "")
    with pytest.raises(ValueError, match=word):
        tool_method("right", "", {"properties": {word: {"type": "string"}}}, lambda *_: "")


# -- environments of 0.2 and 0.3 --


def test_the_tools_of_an_environment_are_the_policys(of_environments):
    name = "verifiers:tiny_tools"
    found = schemas(tasks.environment(name)())
    assert list(found) == ["add", "divide"]
    assert found["add"]["description"] == "Adds two numbers."
    assert found["divide"]["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "what is divided."},
            "b": {"type": "integer", "description": "what it is divided by."},
        },
        "required": ["a", "b"],  # as verifiers tells a model, too
    }
    assert not hasattr(tasks.environment(name), "_reply")


def test_calls_are_answered_and_the_rubric_judges_the_rollout_as_it_was(of_environments):
    name = "verifiers:tiny_tools?max_turns=6"
    world = tasks.environment(name)()
    assert world.reset(**tasks.load(name)[1]) is None
    assert world.add(a=1, b=2) == "3"
    assert world.divide(a=1, b=0) == "division by zero"
    assert "unexpected keyword argument" in world.add(a=1, c=2)
    first = call(("add", {"a": 1, "b": 2}), ("divide", {"a": 1, "b": 0}), content="I add.")
    rest = [told("3"), told("division by zero"), call(("add", {"a": 1, "c": 2})), told("no c")]
    won = verdict_of(name, world, [first, *rest, {"role": "assistant", "content": "3"}])
    assert (won.score, won.feedback, won.kind) == (1.0, "", "")
    assert (won.info["calls"], won.info["total_tool_calls"], won.info["add_calls"]) == (3.0, 3.0, 2.0)
    assert won.info["ended_by"] == "no_tools_called"
    world.reset(**tasks.load(name)[1])
    world.add(a=1, b=1)
    said = [call(("add", {"a": 1, "b": 1})), told("2"), {"role": "assistant", "content": "2"}]
    lost = verdict_of(name, world, said)
    assert (lost.score, lost.feedback, lost.kind) == (0.0, "right: 0", "rubric")


def test_an_environments_limit_of_turns_ends_its_calls(of_environments):
    name = "verifiers:tiny_tools?max_turns=2"
    world = tasks.environment(name)()
    world.reset(**tasks.load(name)[0])
    assert [world.add(a=n, b=1) for n in range(4)] == ["1", *["The rollout is over (max_turns_reached)."] * 3]
    said = [m for n in range(4) for m in (call(("add", {"a": n, "b": 1})), told("?"))]
    assert verdict_of(name, world, said).info["ended_by"] == "max_turns_reached"


def test_tools_share_the_state_of_their_rollout_and_no_other(of_environments):
    name = "verifiers:tiny_tools?stateful=true"
    here, there = tasks.environment(name)(), tasks.environment(name)()
    assert list(schemas(here)["press"]["parameters"]["properties"]) == ["times"]
    for world in (here, there):
        world.reset(**tasks.load(name)[2])
    assert [here.press(times=1), there.press(times=2), here.press(times=3)] == ["1 so far", "2 so far", "4 so far"]
    end = {"role": "assistant", "content": "done"}
    assert [verdict_of(name, w, [call(("press", {"times": 1})), told("1"), end]).score for w in (here, there)] == [
        1.0,
        0.0,
    ]


def test_a_tool_that_ends_its_world_leaves_the_rollout_unjudged(of_environments):
    name = "verifiers:tiny_tools?stateful=true"
    world = tasks.environment(name)()
    world.reset(**tasks.load(name)[2])
    assert world.press(times=10) == "The rollout is over (has_error)."
    broken = verdict_of(name, world, [call(("press", {"times": 10})), told("?")])
    assert (broken.score, broken.kind) == (None, "error")
    assert "ToolCallError" in broken.info["error"]


# -- tasksets of 0.4 --


def test_the_rows_of_a_taskset(of_tasksets):
    name = "verifiers:tiny_taskset"
    rows, held_out = tasks.load(name), tasks.load(name, split="test")
    assert rows["row"][:] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert held_out["row"][:] == [4, 9]
    assert rows[1]["prompt"] == [
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": "What is 1+1?"},
    ]
    assert (rows[1]["problem_id"], rows[1]["answer"]) == (f"{name}/train/1", "2")
    assert len(tasks.load("verifiers:tiny_taskset?n=3")) == 3
    with pytest.raises(ValueError, match="cannot load the taskset 'no_such'"):
        tasks.load("verifiers:no_such")
    with pytest.raises(ValueError, match=r"cannot load the taskset 'tiny_taskset'.*color"):
        tasks.load("verifiers:tiny_taskset?color=red")


def test_a_task_of_one_turn_is_judged_by_its_rewards(of_tasksets):
    name = "verifiers:tiny_taskset"
    assert tasks.environment(name) is None
    said = [[{"role": "assistant", "content": text}] for text in ("2", "twelve", "two")]
    verdicts = tasks.verifier(name)(completions=said, split=["train"] * 3, row=[1, 1, 1])
    assert [v.score for v in verdicts] == [1.0, 0.0, pytest.approx(1 / 3)]
    assert [v.feedback for v in verdicts] == ["", "right: 0\nshort: 0", "right: 0"]
    assert verdicts[0].info == {"reward": 1.5, "right": 1.0, "short": 1.0, "turns": 1.0}


def test_a_task_that_raises_leaves_the_rollout_unjudged(of_tasksets):
    name = "verifiers:tiny_taskset?broken=true"
    (verdict,) = tasks.verifier(name)(completions=["2"], split=["train"], row=[1])
    assert (verdict.score, verdict.kind) == (None, "error")
    assert "the task broke" in verdict.info["error"]


def test_the_tools_of_a_taskset_share_the_rollouts_state_with_its_rewards(of_tasksets):
    name = "verifiers:tiny_taskset?tools=true"
    here, there = tasks.environment(name)(), tasks.environment(name)()
    assert schemas(here) == {
        "bank_deposit": {
            "name": "bank_deposit",
            "description": "Pays money in.",
            "parameters": {
                "type": "object",
                "properties": {"amount": {"type": "integer", "description": "how much, above 0."}},
                "required": ["amount"],
            },
            "return": {"type": "string"},
        }
    }
    row = tasks.load(name)[2]  # 4 is wanted
    for world in (here, there):
        assert world.reset(**row) is None
    said = [here.bank_deposit(amount=1), there.bank_deposit(amount=2), here.bank_deposit(amount=3)]
    assert said == ["Ada has 1", "Ada has 2", "Ada has 4"]
    assert "not a deposit" in here.bank_deposit(amount=-1)
    assert "amount" in here.bank_deposit(amount="much")
    completion = [call(("bank_deposit", {"amount": 1})), told("Ada has 1"), {"role": "assistant", "content": "yes"}]
    won, lost = verdict_of(name, here, completion), verdict_of(name, there, completion)
    assert (won.score, won.feedback, won.info["turns"]) == (1.0, "", 2.0)
    assert (lost.score, lost.feedback) == (pytest.approx(1 / 3), "right: 0")
    here.reset(**row)
    assert here.bank_deposit(amount=5) == "Ada has 5"  # a new rollout, a new state


def test_erratas_own_taskset_comes_back_as_it_was(of_tasksets):
    name = "verifiers:errata_taskset?source=rulebook/new-rule"
    rows, own = tasks.load(name, split="test"), tasks.load("rulebook/new-rule", split="test")
    assert len(rows) == len(own)
    assert rows[0]["prompt"] == own[0]["prompt"]
    answers = [own[0]["reference"], "0"]
    verdicts = tasks.verifier(name)(completions=answers, split=["test"] * 2, row=[0, 0])
    assert [v.score for v in verdicts] == [1.0, 0.0]
