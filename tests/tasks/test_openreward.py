"""TRL's specification of OpenReward against a server of the real package on this machine."""

import pytest
from tests.tasks.serving import serving
from transformers.utils import get_json_schema

from errata import tasks
from errata.training.environments import guarded


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("openreward")
    with serving("number_ors.py") as served:
        yield served


def verdict_of(name, world):
    (verdict,) = tasks.verifier(name)(completions=[""], environments=[world])
    return verdict


def test_sessions_on_a_server_and_its_death(server):
    address, process = server
    name = f"openreward:{address}"
    rows, held_out = tasks.load(name), tasks.load(name, split="test")
    assert (len(rows), len(held_out)) == (5, 2)
    assert rows[3]["prompt"] == [{"role": "user", "content": "Find the number below 10."}]
    assert held_out[0]["prompt"][0]["content"] == "Find the number below 20."
    assert len(tasks.load(f"{name}?rows=2")) == 2
    with pytest.raises(ValueError, match="cannot give its tasks of the split 'dev'"):
        tasks.load(name, split="dev")

    kind = tasks.environment(name)
    here, there = guarded(kind, 20.0)(), guarded(kind, 20.0)()
    assert get_json_schema(here.compare)["function"] == {
        "name": "compare",
        "description": "Compares a number with the one to be found.",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer", "description": "Number"}},
            "required": ["number"],
        },
        "return": {"type": "string"},
    }
    assert here.reset(**rows[3]) is None
    assert there.reset(**held_out[1]) is None
    assert [here.compare(number=1), here.compare(number=3)] == ["too low", "not too low"]
    assert there.answer(number=4) == "4 is not it"
    assert here.answer(number=3) == "right"
    won, lost = verdict_of(name, here), verdict_of(name, there)
    assert (won.score, won.feedback, won.info) == (1.0, "", {"calls": 3, "finished": True})
    assert (lost.score, lost.feedback, lost.kind) == (0.0, "4 is not it", "tool")
    here.reset(**rows[0])
    assert (verdict_of(name, here).score, verdict_of(name, here).feedback) == (0.0, "No tool was called.")
    here.compare(number=-1)  # the tool raises; the server lives
    assert (verdict_of(name, here).score, verdict_of(name, here).kind) == (0.0, "tool")

    here.reset(**rows[0])
    process.kill()
    process.wait()
    assert here.answer(number=0).startswith("Error")
    dead = verdict_of(name, here)
    assert (dead.score, dead.kind) == (None, "error")


def test_a_server_that_is_not_there_is_named():
    pytest.importorskip("openreward")
    with pytest.raises(ValueError, match=r"openreward:http://127\.0\.0\.1:9 cannot give its tasks"):
        tasks.load("openreward:http://127.0.0.1:9")
    with pytest.raises(ValueError, match="rows='many'; the arguments are rows"):
        tasks.load("openreward:http://127.0.0.1:9?rows=many")
