"""A run whose expert is behind a server: from the recipe's key to the weights, with the server killed, paid and spent."""

import json
import re
import threading

import pytest
import torch
import yaml
from tests.experts.remote.fake_server import FakeServer, PolicyAnswers
from tests.experts.worlds import WORDS, build_chain
from tests.experts.worlds import saved as saved_as
from tests.training.worlds import TOKENIZER, build_model, trainer, weights
from transformers import TrainerCallback

from errata.cli import main
from errata.commands.train import build_trainer
from errata.experts import Access, LocalSampler
from errata.recipe.read import read

SAMPLES = {"gives": "samples", "samples": 2, "share": 0.25, "model": "house", "retries": 0}
TOPK = {"gives": "topk", "top_k": len(TOKENIZER), "model": "house", "retries": 0}
SHOWN_NOTHING = {"sources": ["expert"], "cost": "ce"}
SHOWN_THE_SOLUTION = {"sources": ["reference"], "cost": "ce"}


def saved(folder, seed):
    model = build_model(len(TOKENIZER), seed=seed)
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("policy"), 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The model behind the server, as a directory."""
    return saved(tmp_path_factory.mktemp("other"), 7)


@pytest.fixture
def server():
    with FakeServer(PolicyAnswers(build_model(len(TOKENIZER), seed=7).eval(), TOKENIZER)) as server:
        yield server


def recipe(folder, policy, expert, expert_args, **changes):
    settings = {
        "model": policy,
        "task": "rulebook/new-rule",
        "method": "distil",
        "method_args": SHOWN_NOTHING,
        "expert": expert if isinstance(expert, str) or expert is None else expert.url,
        "expert_args": expert_args,
        "context_template": "house",
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 10,
        "max_steps": 3,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "use_cpu": True,
        "output_dir": str(folder / "run"),
    }
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


def built(*args, at=None, **changes):
    """The trainer of a recipe; ``at`` maps a step to what happens at its end."""
    made = build_trainer(read(recipe(*args, **changes)))
    made.add_callback(AtStep(at or {}))
    return made


def trained(*args, **changes):
    made = built(*args, **changes)
    made.train()
    return made


def logged(made, name):
    return [log[name] for log in made.state.log_history if name in log]


class AtStep(TrainerCallback):
    def __init__(self, acts):
        self.acts = acts

    def on_step_end(self, args, state, control, **kwargs):
        self.acts.get(state.global_step, lambda: None)()


class KilledError(Exception):
    pass


def kill():
    raise KilledError


# -- what it learns from ----------------------------------------------------------------------------------------------


def test_the_servers_topk_trains_as_the_same_model_held_here(tmp_path, policy, other, server):
    """The oracle is a local expert asked through the same door; the server's numbers went through JSON."""
    kl = {"method_args": {"sources": ["expert"], "cost": "kl"}}
    remote = trained(tmp_path / "a", policy, server, TOPK, **kl)
    local = trained(tmp_path / "b", policy, other, {"gives": "topk", "top_k": len(TOKENIZER)}, **kl)
    assert logged(remote, "loss")[0] != 0
    torch.testing.assert_close(
        torch.tensor([logged(remote, n) for n in ("loss", "grad_norm")]),
        torch.tensor([logged(local, n) for n in ("loss", "grad_norm")]),
        atol=1e-4,
        rtol=1e-4,
    )
    assert len(server.requests) == 1 + 3 * 8  # the check, and one a rollout
    assert logged(remote, "expert/calls") == [9, 17, 25]
    assert all(b["model"] == "house" and b["prompt_logprobs"] == len(TOKENIZER) for b in server.requests)


def test_samples_are_asked_for_at_the_runs_temperature(tmp_path, policy, server):
    made = built(tmp_path, policy, server, SAMPLES, temperature=0.6, max_steps=1)
    assert made.expert.temperature == 0.6
    made.train()
    assert len(server.requests) > 10
    assert {body["temperature"] for body in server.requests} == {0.6}


@pytest.mark.parametrize(
    ("expert_args", "message"),
    [
        (
            TOPK,
            "gives: topk: a server's top-k log-probs are at temperature 1, and the run's is 0.6; converting .* samples",
        ),
        ({**SAMPLES, "temperature": 1.0}, "expert_args: temperature 1 is not the run's 0.6, so two models that agree"),
    ],
)
def test_answers_at_another_temperature_are_refused_before_any_is_asked_for(
    tmp_path, policy, server, expert_args, message
):
    with pytest.raises(ValueError, match=message):
        built(tmp_path, policy, server, expert_args, temperature=0.6)
    assert server.requests == []


def test_an_expert_of_ones_own_at_another_temperature_is_refused(tmp_path, policy):
    cold = LocalSampler(policy, TOKENIZER, draws=1, temperature=0.5)
    samples = Access(gives="samples")
    with pytest.raises(ValueError, match=r"expert_args: temperature 0.5 is not the run's 1"):
        trainer(tmp_path, "distil", method_args={"cost": "ce"}, access=samples, expert=lambda prepare: cold)


def test_samples_train_and_what_they_cost_is_logged(tmp_path, policy, server):
    made = trained(tmp_path, policy, server, SAMPLES)
    assert logged(made, "expert/unanswered") == [0, 0, 0]
    assert 0.1 < logged(made, "expert/share")[0] < 0.4
    assert all(loss != 0 for loss in logged(made, "loss"))
    calls = logged(made, "expert/calls")
    assert calls == sorted(calls)
    assert calls[-1] == len(server.requests)
    assert logged(made, "expert/tokens_in")[-1] > 20 * calls[-1]  # prompt and attempt are paid for at every state
    assert 1 < logged(made, "expert/tokens_out")[-1] / calls[-1] <= 2 * 4
    before = build_model(len(TOKENIZER))
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(before).values(), weights(made.model).values(), strict=True)
    )


@pytest.mark.parametrize("expert_args", [SAMPLES, {**TOPK, "top_k": 5}], ids=["samples", "topk"])
def test_a_killed_run_asks_nothing_twice_and_reaches_the_same_weights(tmp_path, policy, server, expert_args):
    whole = trained(tmp_path / "whole", policy, server, expert_args)
    once = len(server.requests)

    cut = {"save_strategy": "steps", "save_steps": 1}
    first = built(tmp_path / "cut", policy, server, expert_args, at={2: kill}, **cut)
    with pytest.raises(KilledError):
        first.train()  # two steps are paid for, one is in a checkpoint
    second = built(tmp_path / "cut", policy, server, expert_args)
    second.train(resume_from_checkpoint=str(tmp_path / "cut" / "run" / "checkpoint-1"))

    assert len(server.requests) - once == once + 1  # one more only: the check of the second start
    assert logged(second, "expert/cached")[1] > 0
    assert second.state.global_step == 3
    assert logged(second, "loss")[-2:] == logged(whole, "loss")[-2:]
    for (n, a), b in zip(weights(second.model).items(), weights(whole.model).values(), strict=True):
        assert torch.equal(a, b), n


# -- the server dies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expert_args", [SAMPLES, TOPK], ids=["samples", "topk"])
def test_skip_counts_what_a_dead_server_left_unanswered(tmp_path, policy, server, expert_args):
    made = trained(tmp_path, policy, server, expert_args, at={1: server.stop, 2: server.start})
    assert logged(made, "expert/unanswered") == [0, 1, 0]
    assert logged(made, "expert/states")[1] == 0
    assert logged(made, "expert/by_self") == [0, 0, 0]
    assert logged(made, "expert/failed")[0] == 0 < logged(made, "expert/failed")[1]
    losses = logged(made, "loss")
    assert losses[1] == 0
    assert 0 not in (losses[0], losses[2])
    assert made.state.global_step == 3


def test_a_methods_other_part_goes_on_without_the_server(tmp_path, policy, server):
    """SRPO's rewards train where its teacher is silent."""
    changes = {"method": "srpo", "method_args": {}, "verifier": [f"{write_verifier(tmp_path)}:letters"]}
    made = trained(tmp_path, policy, server, TOPK, at={1: server.stop, 2: server.start}, **changes)
    assert logged(made, "expert/unanswered")[1] == 1
    assert logged(made, "grad_norm")[1] > 0


def write_verifier(folder):
    path = folder / "letters.py"
    path.write_text(
        "def letters(completions, **kwargs):\n"
        "    texts = [c if isinstance(c, str) else c[-1]['content'] for c in completions]\n"
        "    return [float(sum(ch.isalpha() for ch in t) > 0.5 * len(t)) for t in texts]\n"
    )
    return path


def test_self_marks_in_the_servers_place(tmp_path, policy, server):
    made = trained(
        tmp_path,
        policy,
        server,
        SAMPLES,
        at={1: server.stop, 2: server.start},
        method_args=SHOWN_THE_SOLUTION,
        expert_on_failure="self",
    )
    assert logged(made, "expert/by_self") == [0, 1, 0]
    assert logged(made, "expert/unanswered") == [0, 1, 0]
    assert all(loss != 0 for loss in logged(made, "loss"))


@pytest.mark.parametrize("expert_args", [SAMPLES, TOPK], ids=["samples", "topk"])
def test_self_under_a_server_that_never_answers_is_the_policy_as_its_own_teacher(tmp_path, policy, server, expert_args):
    settings = {"method_args": SHOWN_THE_SOLUTION}
    remote = built(tmp_path / "a", policy, server, expert_args, expert_on_failure="self", **settings)
    server.always = "500"
    remote.train()
    own = trained(tmp_path / "b", policy, None, {}, teacher="live", **settings)
    assert logged(remote, "expert/by_self") == [1, 1, 1]
    torch.testing.assert_close(
        torch.tensor([logged(remote, n) for n in ("loss", "grad_norm")]),
        torch.tensor([logged(own, n) for n in ("loss", "grad_norm")]),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("cost", ["ce", "kl"])
def test_marks_of_both_kinds_in_one_batch_add_up(tmp_path, policy, cost):
    """The server holds the policy's own first weights, so whoever marks a rollout of the first step says the same."""
    settings = {"method_args": {"sources": ["reference"], "cost": cost}, "max_steps": 1}
    with FakeServer(PolicyAnswers(build_model(len(TOKENIZER)).eval(), TOKENIZER)) as server:
        half = {**TOPK, "max_calls": 1 + 4}
        mixed = trained(tmp_path / "a", policy, server, half, expert_on_failure="self", **settings)
    own = trained(tmp_path / "b", policy, None, {}, teacher="live", **settings)
    assert logged(mixed, "expert/by_self") == [0.5]
    torch.testing.assert_close(
        torch.tensor([logged(mixed, n) for n in ("loss", "grad_norm")]),
        torch.tensor([logged(own, n) for n in ("loss", "grad_norm")]),
        atol=1e-4,
        rtol=1e-4,
    )


def test_pause_waits_for_the_restart_and_misses_nothing(tmp_path, policy, server):
    undisturbed = trained(tmp_path / "a", policy, server, SAMPLES)

    def down_for_a_second():
        server.stop()
        threading.Timer(1.0, server.start).start()

    paused = trained(tmp_path / "b", policy, server, SAMPLES, at={1: down_for_a_second}, expert_on_failure="pause")
    assert logged(paused, "expert/unanswered") == [0, 0, 0]
    assert logged(paused, "expert/failed")[-1] == 0
    seconds = logged(paused, "expert/seconds")
    assert seconds[1] - seconds[0] > 1
    for a, b in zip(weights(paused.model).values(), weights(undisturbed.model).values(), strict=True):
        assert torch.equal(a, b)


# -- what it costs, and the key ----------------------------------------------------------------------------------------


def test_a_spent_budget_ends_the_asking_and_not_the_training(tmp_path, policy, server):
    args = {**TOPK, "max_calls": 12}  # the check, the first step's 8, and 3 of the second's
    changes = {"save_strategy": "steps", "save_steps": 1}
    made = trained(tmp_path, policy, server, args, **changes)
    assert made.state.global_step == 3
    assert len(server.requests) == 12
    assert logged(made, "expert/calls") == [9, 12, 12]
    assert logged(made, "expert/refused") == [0, 5, 13]
    assert logged(made, "expert/unanswered") == [0, 5 / 8, 1]

    # Resumed, the account is still spent, also where no cache knows the answers.
    args["cache"] = str(tmp_path / "empty.sqlite")
    again = built(tmp_path, policy, server, args)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert len(server.requests) == 12 + 1  # its check
    assert logged(again, "expert/calls")[-1] == 12
    assert logged(again, "expert/unanswered")[-1] == 1


def test_the_key_is_sent_and_stands_in_no_file_of_the_run(tmp_path, policy, server, monkeypatch, caplog, capfd):
    key = "sk-a-key-that-nobody-may-see-4711"
    monkeypatch.setenv("EXPERT_KEY", key)
    args = {**SAMPLES, "key_env": "EXPERT_KEY"}
    path = recipe(tmp_path, policy, server, args, max_steps=2, save_strategy="steps", save_steps=1)
    server.script.extend(["ok", "500", "garbage", "429"])
    assert main(["train", str(path)]) == 0
    assert set(server.keys) == {f"Bearer {key}"}
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert {"expert_cache.sqlite", "config.yaml", "env.json", "metrics.jsonl", "rollouts.jsonl", "state.json"} <= {
        p.name for p in files
    }
    assert not [p for p in files if key.encode() in p.read_bytes()]
    shown = capfd.readouterr()
    assert key not in caplog.text + shown.out + shown.err
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["expert/failed"] == 3


def test_a_model_with_another_tokenizer_trains_the_policy_by_samples(tmp_path, policy):
    chain = build_chain(WORDS, {"=": "12", "1": "2"})
    other = saved_as(tmp_path / "words", chain, WORDS)
    made = trained(tmp_path, policy, other, {"gives": "samples", "samples": 2, "share": 0.25}, max_steps=1)
    (calls,) = logged(made, "expert/calls")
    (misaligned,) = logged(made, "expert/misaligned")
    assert calls > misaligned >= 0
    assert logged(made, "expert/states")[0] > 0
    assert logged(made, "grad_norm")[0] > 0


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expert_args", "message"),
    [
        ({"concurency": 3}, "concurency: no such setting of a remote expert; it has .*concurrency"),
        ({"on_failure": "pause"}, "on_failure is the recipe's expert_on_failure"),
        ({"answer_tokens": 1}, "answer_tokens: must be a whole number of at least 3"),
        ({"retries": "many"}, "retries: must be a whole number"),
        ({"key_env": "hf_SecretSecret"}, "key_env: must be the name of an environment variable, in capitals"),
    ],
)
def test_a_wrong_setting_is_one_line_before_anything_is_asked(tmp_path, policy, server, expert_args, message, capsys):
    path = recipe(tmp_path, policy, server, {**SAMPLES, **expert_args})
    assert main(["train", str(path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line
    assert "Secret" not in line
    assert not server.requests
    assert not (tmp_path / "run").exists()


def test_a_server_that_is_not_there_is_one_line_and_leaves_no_run(tmp_path, policy, server, capsys):
    path = recipe(tmp_path, policy, server, SAMPLES)
    server.stop()
    try:
        assert main(["train", str(path)]) == 2
    finally:
        server.start()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "base_url" in line
    assert "start the server" in line
    assert not (tmp_path / "run" / "config.yaml").exists()
