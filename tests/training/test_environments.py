"""Several environments in one run, and environments that fail: those cost their rollout and never the run."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from datasets import Dataset
from tests.training import tool_world as world
from tests.training.test_tools import TOKENIZER, USER, spied, tools_trainer

from errata import methods
from errata.feedback.routed import RoutedVerifier
from errata.records import fitting
from errata.training.environments import MOST_CHARACTERS, Reader, answer, failure, guarded, guarded_tool, within

Adder = USER["Adder"]
ONE_MORE = USER["one_more"]


class Bad(Adder):
    """An adder that fails on one problem, in the way that its subclass says."""

    def _fail(self):
        raise NotImplementedError

    def reset(self, **row):
        super().reset(**row)
        self.bad = row["problem_id"] == "1+2"
        return self._fail() if self.bad and self.at_reset else " go"

    def add(self, a: int, b: int) -> str:
        """
        Adds two numbers.

        Args:
            a: the first.
            b: the second.
        """
        return self._fail() if self.bad and not self.at_reset else super().add(a, b)


def hang(self):
    while True:
        time.sleep(0.01)


def leave(self):
    raise SystemExit(3)


def interrupt(self):
    raise KeyboardInterrupt


def lose(self):
    raise ConnectionResetError("the server was killed")


def stumble(self):
    raise ValueError("no such sum")


WAYS = {
    "reset raises": (True, stumble, "reset: ValueError: no such sum"),
    "reset hangs": (True, hang, "reset: TimeoutError: took longer than 0.3 s"),
    "reset exits": (True, leave, "reset: RuntimeError: exits with 3"),
    "reset returns a number": (True, lambda self: 7, "reset: TypeError: returned 7; it must be a text"),
    "a tool hangs": (False, hang, "add: TimeoutError: took longer than 0.3 s"),
    "reset shows more than the model reads": (
        True,
        lambda self: "go " * 5000,
        "reset: ValueError: shows 15000 characters",
    ),
    "reset interrupts": (True, interrupt, "reset: RuntimeError: raised KeyboardInterrupt"),
    "a tool exits": (False, leave, "add: RuntimeError: exits with 3"),
    "a server dies": (False, lose, "add: ConnectionResetError: the server was killed"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_environment_costs_its_rollouts(tmp_path, way):
    at_reset, fail, reason = WAYS[way]
    kind = type("Bad", (Bad,), {"at_reset": at_reset, "_fail": fail})
    t = tools_trainer(tmp_path, environment_factory=kind, environment_timeout_s=0.3, shuffle_dataset=False)
    batches = spied(t)
    t.train()
    rollouts = batches[0].rollouts
    bad = [r for r in rollouts if r.problem_id == "1+2"]
    assert [r for r in rollouts if r not in bad]
    assert all(r.reward is not None for r in rollouts if r not in bad)
    for r in bad:
        assert r.reward is None
        assert r.verdict.info["error"].startswith(f"environment: {reason}")
    assert len(bad) == 4


@pytest.mark.parametrize("way", ["raises", "floods", "returns an object"])
def test_what_a_tool_returns_is_an_answer_to_the_policy(tmp_path, way):
    class Thing:
        def __str__(self):
            return "a thing"

    fail = {"raises": stumble, "floods": lambda self: "x" * 10_000_000, "returns an object": lambda self: Thing()}[way]
    kind = type("Bad", (Bad,), {"at_reset": False, "_fail": fail})
    t = tools_trainer(tmp_path, environment_factory=kind, environment_timeout_s=5.0, shuffle_dataset=False)
    batches = spied(t)
    t.train()
    bad = [r for r in batches[0].rollouts if r.problem_id == "1+2"]
    assert len(bad) == 4
    assert all(r.reward is not None for r in bad)


def test_an_environment_that_failed_begins_anew():
    class Once(Adder):
        def add(self, a: int, b: int) -> str:
            """Adds."""
            if self.calls:
                return str(a + b)
            self.calls.append(0)
            raise ConnectionError("gone")

    environment = guarded(Once, 1.0)()
    assert isinstance(environment, Once)
    assert environment.reset(problem_id="p") == " go"
    with pytest.raises(ConnectionError):
        environment.add(1, 2)
    assert failure(environment) == "add: ConnectionError: gone"
    assert environment.reset(problem_id="p") == " go"
    assert failure(environment) == ""


def test_a_guarded_tool_is_described_as_the_tool_itself():
    from transformers.utils.chat_template_utils import get_json_schema

    tool = USER["add"]
    assert get_json_schema(guarded_tool(tool, 1.0)) == get_json_schema(tool)
    assert get_json_schema(guarded(Adder, 1.0)().add) == get_json_schema(Adder().add)
    assert guarded_tool(tool, None)(2, 3) == "5"


def test_asynchronous_calls_have_a_limit():
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    tool = guarded_tool(slow, 0.2)
    assert asyncio.run(tool(0.0)) == "done"
    with pytest.raises(TimeoutError):
        asyncio.run(tool(5.0))


def test_answers_are_texts_of_bounded_length():
    assert answer(7) == "7"
    assert answer("\ud800a") == "?a"
    assert answer([1, 2]) == "[1, 2]"
    long = answer("a" * MOST_CHARACTERS + "b" * MOST_CHARACTERS)
    assert long.startswith("aaa")
    assert long.endswith("bbb")
    assert f"[{MOST_CHARACTERS} characters left out]" in long


def test_images_reach_a_model_that_reads_them_and_no_other():
    parts = [{"type": "text", "text": "a"}, {"type": "image", "image": None}]
    assert Reader(images=True).answer(parts) == parts
    assert Reader(images=False).answer(parts) == "a\n[image]"
    kind = type("Camera", (), {"reset": lambda self: parts, "look": lambda self: parts})
    blind = guarded(kind, 1.0, Reader(images=False))()
    assert (blind.reset(), blind.look()) == ("a\n[image]", "a\n[image]")


def test_what_is_shown_at_a_reset_must_fit_with_the_prompt():
    reader = Reader(most_tokens=6, tokenize=lambda text: {"input_ids": text.split()})
    environment = guarded(type("Teller", (), {"reset": lambda self, prompt, n: " so" * n}), 1.0, reader)()
    prompt = [{"role": "user", "content": "two words"}]
    assert environment.reset(prompt=prompt, n=4) == " so so so so"
    assert failure(environment) == ""
    assert environment.reset(prompt=prompt, n=5) is None
    assert (
        failure(environment) == "reset: ValueError: shows 15 characters, more than the model can read before an answer"
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda self: "one", "ValueError: verifier 'get_reward', completion 0: the score must be a number"),
        (lambda self: [1.0, 2.0], "ValueError: verifier 'get_reward'"),
        (stumble, "ValueError: no such sum"),
        (hang, "TimeoutError: took longer than 0.2 s"),
        (leave, "RuntimeError: exits with 3"),
        (interrupt, "RuntimeError: raised KeyboardInterrupt"),
    ],
)
def test_a_bad_reward_costs_its_own_rollout(given, reason):
    kind = type("Owner", (), {"reset": lambda self: None, "get_reward": given})
    environment = guarded(kind, 0.2)()
    assert environment.reset() is None
    assert environment.get_reward() is None
    assert failure(environment).startswith(f"get_reward: {reason}")
    environment.reset()
    assert failure(environment) == ""


def test_a_good_reward_is_left_as_it_is():
    async def later(self):
        return {"score": 0.5, "feedback": "half"}

    kind = type("Owner", (), {"reset": lambda self: None, "get_reward": lambda self: 1})
    assert guarded(kind, 0.2)().get_reward() == 1
    waits = guarded(type("Owner", (), {"reset": lambda self: None, "get_reward": later}), 0.2)()
    assert asyncio.iscoroutinefunction(waits.get_reward)
    assert asyncio.run(waits.get_reward()) == {"score": 0.5, "feedback": "half"}


def test_classes_that_take_no_attributes_are_refused_or_watched_anyway():
    with pytest.raises(ValueError, match=r"environment: Slots cannot be watched.*leave out __slots__"):
        guarded(type("Slots", (), {"__slots__": (), "reset": lambda self: None}), 1.0)()

    class Frozen:
        def __setattr__(self, name, value):
            raise AttributeError("frozen")

        def reset(self):
            raise RuntimeError

    environment = guarded(Frozen, 1.0)()
    assert environment.reset() is None
    assert failure(environment) == "reset: RuntimeError"


def test_the_working_directory_stays(tmp_path):
    here = Path.cwd()
    assert within(1.0, lambda: os.chdir(tmp_path)) is None
    assert Path.cwd() == here


def test_within_ends_a_loop_in_python():
    ended = []

    def loop():
        try:
            while True:
                time.sleep(0.005)
        finally:
            ended.append(True)

    with pytest.raises(TimeoutError, match=r"took longer than 0\.1 s"):
        within(0.1, loop)
    time.sleep(0.1)
    assert ended


# -- several environments --


class Pair:
    """Another environment: two tools, and its own reward."""

    def reset(self, **row):
        self.row = row
        return " go"

    def add(self, a: int, b: int) -> str:
        """
        Adds two numbers.

        Args:
            a: the first.
            b: the second.
        """
        return str(a + b)

    def subtract(self, a: int, b: int) -> str:
        """
        Subtracts two numbers.

        Args:
            a: the first.
            b: the second.
        """
        return str(a - b)

    def get_reward(self):
        assert "environment" not in self.row  # TRL keeps it to itself
        return {"score": 0.0, "feedback": "judged by itself", "kind": "tool"}


def rows():
    names = ["plain", "pair", "plain", "pair"]
    return Dataset.from_list(
        [{**row, "environment": name} for row, name in zip(world.tool_rows().to_list(), names, strict=True)]
    )


def several(folder, **changes):
    verifier = RoutedVerifier({"plain": ONE_MORE}, timeout_s=10)
    return tools_trainer(
        folder,
        verifiers=(verifier,),
        environment_factory={"plain": Adder, "pair": Pair},
        train_dataset=rows(),
        shuffle_dataset=False,
        context_template={"pair": "{{ prompt }} {{ feedback }} pair", "plain": "{{ prompt }} {{ feedback }}"},
        method_args={"sources": ["feedback"]},
        **changes,
    )


def test_each_row_has_its_environment_with_tools_verifier_and_wording(tmp_path):
    kept = []
    t = several(tmp_path, keep=kept, eval_dataset=rows(), eval_strategy="steps", eval_steps=1)
    batches, prompts = spied(t), []
    encode = t.teacher_pass.encode
    object.__setattr__(t.teacher_pass, "encode", lambda p, e: prompts.append((encode(p, e), e)) or encode(p, e))
    t.train()
    (batch,) = batches
    by_name = {"plain": [], "pair": []}
    for r in batch.rollouts:
        by_name[r.row["environment"]].append(r)
    assert {len(v) for v in by_name.values()} == {4}
    assert all(r.verdict.feedback == "judged by itself" and r.reward == 0.0 for r in by_name["pair"])
    assert all("not" in r.verdict.feedback or r.reward == 1.0 for r in by_name["plain"])
    ((ids, names),) = prompts
    told = [TOKENIZER.decode(i) for i in ids]
    for text, name in zip(told, names, strict=True):
        assert text.startswith({"plain": "<|system|>add <|end|>", "pair": "<|system|>add subtract <|end|>"}[name])
        assert text.endswith(" pair<|end|><|assistant|>") == (name == "pair")
    logs = [log for log in t.state.log_history if "tasks/pair/solved" in log]
    assert logs[0]["tasks/pair/solved"] == 0.0
    assert 0.0 <= logs[0]["tasks/plain/reward"] <= 1.0
    evaluated = next(log for log in t.state.log_history if "eval_avg@4" in log)
    assert evaluated["eval_pair/avg@4"] == 0.0
    assert evaluated["eval_avg@4"] == pytest.approx(evaluated["eval_plain/avg@4"] / 2)


def test_contexts_differ_by_environment(tmp_path):
    other = methods.get("distil", sources=["hindsight"])
    t = several(tmp_path, context_methods={"pair": other})
    batches = spied(t)
    t.train()
    kinds = {(r.row["environment"], c.kind) for r, c in zip(batches[0].rollouts, batches[0].contexts, strict=True)}
    assert ("pair", "hindsight") in kinds
    assert ("plain", "hindsight") not in kinds


# -- routing --


def test_a_row_belongs_to_its_environment_else_to_the_nearest_task():
    names = ["rulebook", "rulebook/new-rule", "math", "desk"]
    assert fitting({"task": "rulebook/new-rule"}, names) == "rulebook/new-rule"
    assert fitting({"task": "rulebook/sharpen"}, names) == "rulebook"
    assert fitting({"task": "rulebooks"}, names) is None
    assert fitting({"task": "math", "environment": "desk"}, names) == "desk"
    assert fitting({}, names) is None


def test_each_verifier_judges_its_own_rows_and_fails_alone():
    def right(completions, answer, log_extra, **_):
        log_extra("seen", list(answer))
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    def broken(completions, **_):
        raise RuntimeError("no")

    extra = {}
    judge = RoutedVerifier({"a": right, "b": broken}, timeout_s=5)
    verdicts = judge(
        prompts=["p"] * 4,
        completions=["1", "2", "3", "4"],
        task=["a", "b", "a", "c"],
        answer=["1", "2", "0", "4"],
        log_extra=lambda name, values: extra.update({name: values}),
    )
    assert [v.score for v in verdicts] == [1.0, None, 0.0, None]
    assert [v.kind for v in verdicts] == ["", "error", "", ""]
    assert extra == {"seen": ["1", None, "0", None]}
    assert judge.__name__ == "right+broken"
