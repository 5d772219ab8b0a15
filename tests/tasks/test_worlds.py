"""Other packages' environments, unchanged, against the real packages: rows, replies, ends, errors and verdicts."""

import random
import re
from pathlib import Path

import pytest
from tests.tasks.serving import serving

from errata import tasks
from errata.tasks.worlds import arguments_of
from errata.training.conversation import _replied
from errata.training.environments import failure, guarded

WORLDS = Path(__file__).parent / "worlds"


@pytest.fixture
def of_verifiers(monkeypatch):
    package = pytest.importorskip("verifiers")
    if not hasattr(package, "MultiTurnEnv"):
        pytest.skip("verifiers 0.4 has no environments of this kind")
    monkeypatch.syspath_prepend(str(WORLDS))


def verdict_of(name, world):
    (verdict,) = tasks.verifier(name)(completions=[""], environments=[world])
    return verdict


def test_arguments_are_read_from_the_name():
    assert arguments_of("wordle?max_turns=3&hard=true") == ("wordle", {"max_turns": 3, "hard": True})
    assert arguments_of("wordle") == ("wordle", {})
    with pytest.raises(ValueError, match="'hard' must be written as NAME=VALUE"):
        arguments_of("wordle?hard")


@pytest.mark.parametrize(
    ("family", "mend"),
    [
        ("verifiers", "errata[verifiers-envs]"),
        ("textarena", "errata[textarena]"),
        ("openenv", "errata[openenv]"),
        ("openreward", "trl[openreward]"),
    ],
)
def test_families_are_listed_and_a_missing_package_is_named(family, mend, monkeypatch):
    assert f"{family}:NAME" in tasks.names()
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ValueError, match=re.escape(f"needs the package {family}; pip install '{mend}'")):
        tasks.load(f"{family}:not-{family}")


# -- verifiers --


def test_one_turn_of_verifiers(of_verifiers):
    name = "verifiers:tiny_sum?n=3"
    rows = tasks.load(name)
    assert len(rows) == 3
    assert rows[1]["problem_id"] == f"{name}/train/1"
    assert rows[1]["prompt"] == [
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": "What is 1+1?"},
    ]
    assert (rows[1]["answer"], rows[1]["info"]) == ("2", '{"i": 1}')
    assert tasks.environment(name) is None
    said = [[{"role": "assistant", "content": text}] for text in ("1", "twelve", "3 ")]
    verdicts = tasks.verifier(name)(completions=said, split=["train"] * 3, row=[0, 1, 1])
    assert [v.score for v in verdicts] == [1.0, 0.0, pytest.approx(1 / 3)]
    assert [v.feedback for v in verdicts] == ["", "exact: 0\nshort: 0", "exact: 0"]
    assert [v.kind for v in verdicts] == ["", "rubric", "rubric"]
    assert verdicts[0].info["reward"] == 1.5


def test_several_turns_of_verifiers(of_verifiers):
    name = "verifiers:tiny_guess"
    world = tasks.environment(name)()
    row = tasks.load(name)[7]
    assert world.reset(**row) is None  # the prompt says it all
    assert [world._reply(text) for text in ("3", "9", "7", "7")] == ["higher", "lower", None, None]
    won = verdict_of(name, world)
    assert (won.score, won.feedback, won.info["ended_by"]) == (1.0, "", "has_final_env_response")
    world.reset(**row)
    assert [world._reply("1") for _ in range(5)] == ["higher", "higher", "higher", None, None]
    lost = verdict_of(name, world)
    assert (lost.score, lost.feedback, lost.info["ended_by"]) == (0.0, "found: 0", "max_turns_reached")


def test_a_rollout_of_verifiers_that_the_trainer_ends_is_judged(of_verifiers):
    name = "verifiers:tiny_guess?max_turns=9"
    world = tasks.environment(name)()
    world.reset(**tasks.load(name)[7])
    assert world._reply("1") == "higher"
    assert verdict_of(name, world).info["ended_by"] == "prompt_too_long"


def test_an_error_of_a_world_of_verifiers_leaves_the_rollout_unjudged(of_verifiers):
    name = "verifiers:tiny_guess"
    world = tasks.environment(name)()
    world.reset(**tasks.load(name)[7])
    assert world._reply("break") is None
    broken = verdict_of(name, world)
    assert (broken.score, broken.kind) == (None, "error")
    assert "the world broke" in broken.info["error"]


def test_an_unknown_environment_of_verifiers_is_named(of_verifiers):
    with pytest.raises(ValueError, match="verifiers cannot load the environment 'no_such'"):
        tasks.load("verifiers:no_such")


# -- TextArena --


def test_a_game_of_textarena():
    pytest.importorskip("textarena")
    name = "textarena:GuessTheNumber-v0?rows=3"
    rows = tasks.load(name)
    assert len(rows) == 3
    assert "between 1 and 20" in rows[0]["prompt"][0]["content"]
    assert set(rows["problem_id"]).isdisjoint(tasks.load(name, split="test")["problem_id"])
    world, before = tasks.environment(name)(), random.getstate()
    told = []
    for _ in range(2):  # the same seed is the same game
        world.reset(**rows[1])
        replies = [world._reply(f"[{n}]") for n in range(1, 11)]
        told.append(replies)
        won = None in replies
    assert told[0] == told[1]
    assert told[0][0] == "The target number is higher."
    assert (verdict_of(name, world).score == 1.0) == won
    assert random.getstate() == before
    world.reset(**rows[1])
    assert "invalid move" in world._reply("hm")
    assert world._reply("hm") is None
    lost = verdict_of(name, world)
    assert (lost.score, lost.info["invalid_move"]) == (0.0, True)
    assert lost.feedback.startswith("Invalid Move")
    world.reset(**rows[1])
    assert verdict_of(name, world).feedback == "The game was not over."


@pytest.mark.parametrize(("name", "why"), [("No-v0", "no game 'No-v0'"), ("GuessTheNumber-v0?a=1", "argument is rows")])
def test_a_bad_name_of_textarena_is_refused(name, why):
    pytest.importorskip("textarena")
    with pytest.raises(ValueError, match=why):
        tasks.load(f"textarena:{name}")


# -- OpenEnv --


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("openenv")
    with serving("number_server.py") as served:
        yield served


def test_episodes_on_a_server_of_openenv_and_its_death(server):
    address, process = server
    name = f"openenv:{address}?rows=3&observation=text"
    assert tasks.load(name)["world_seed"] == [0, 1, 2]
    world = guarded(tasks.environment(name), 20.0)()
    assert world.reset(world_seed=7) == "\n\nGuess a digit."
    assert [world._reply(text) for text in ("3", "7", "7")] == ["higher", None, None]
    won = verdict_of(name, world)
    assert (won.score, won.feedback, won.info) == (1.0, "", {"steps": 2, "done": True})
    world.reset(world_seed=2)
    assert [world._reply("9") for _ in range(5)] == ["lower", "lower", "lower", None, None]
    assert (verdict_of(name, world).score, verdict_of(name, world).feedback) == (0.0, "lower")
    world.reset(world_seed=2)
    process.kill()
    process.wait()
    assert _replied(world, "3") is None
    assert "ConnectionError" in failure(world)
    world.reset(world_seed=2)
    assert failure(world).startswith("reset: ConnectionError")
    with pytest.raises(ValueError, match="cannot begin an episode: ConnectionError"):
        tasks.load(f"openenv:{address}")


def test_unknown_arguments_of_openenv_are_named():
    pytest.importorskip("openenv")
    with pytest.raises(ValueError, match="rows='many'; the arguments are action"):
        tasks.load("openenv:http://127.0.0.1:1?rows=many")
