"""Hugging Face's own server, ``transformers serve``, with the house policy as the expert."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter

import pytest
import torch

from errata.experts.queries import Query
from errata.experts.remote.server import ServerExpert
from errata.house import HOUSE_PATH

for needed in ("openai", "fastapi", "uvicorn"):
    pytest.importorskip(needed)

PROMPT, ATTEMPT = "<|user|>7a+3b*4=?<|assistant|>", "7a+3=0b*4=3<|end|>"
SERVE = "from transformers.cli.transformers import main; main()"


class Serve:
    """The server's process; `kill` and `start` as often as needed, always on the same port."""

    def __init__(self, log):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log, self.process = log, None
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def start(self):
        options = ["serve", HOUSE_PATH, "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, *options], env=environment, stdout=log, stderr=log
            )
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"transformers serve did not start:\n{self.log.read_text()[-2000:]}")

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    server = Serve(tmp_path_factory.mktemp("serve") / "log")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def question(house_tokenizer):
    ids = {text: tuple(house_tokenizer(text)["input_ids"]) for text in (PROMPT, ATTEMPT)}
    return lambda *positions, seed=0: Query(PROMPT, ids[PROMPT], ids[ATTEMPT], positions, seed)


@pytest.fixture
def expert(house_tokenizer, tmp_path):
    def build(url, **settings):
        settings = {"gives": "samples", "retries": 0, "cache": str(tmp_path / "expert.sqlite")} | settings
        return ServerExpert(url, HOUSE_PATH, house_tokenizer, **settings)

    return build


def test_what_it_can_and_cannot_is_said_before_the_run(serve, expert, house_tokenizer):
    expert(serve.url).check()
    with pytest.raises(ValueError, match=r"gives: samples"):
        expert(serve.url, gives="topk").check()
    with pytest.raises(ValueError, match=r"use api: completions"):
        expert(serve.url, api="chat").check()
    with pytest.raises(ValueError, match=r"pinned to .* correct model"):
        ServerExpert(serve.url, "another", house_tokenizer, gives="samples").check()


def test_its_draws_are_the_policys(serve, expert, question, house_model):
    n, asked = 240, question(0, 5, 11)
    one = expert(serve.url, samples=n)
    (answer,) = one.answer([asked])
    assert answer.positions == (0, 5, 11)
    assert one.counters["failed"] == one.counters["misaligned"] == 0
    assert one.counters["calls"] == 3 * n  # it ignores n
    for row, position in enumerate(answer.positions):
        there = answer.logp[row] > -math.inf
        assert answer.logp[row][there].tolist() == pytest.approx([-math.log(n)] * n)
        counts = Counter(answer.tokens[row][there].tolist())
        with torch.no_grad():
            ids = torch.tensor([[*asked.prompt_ids, *asked.completion_ids[:position]]])
            p = torch.softmax(house_model(ids).logits[0, -1].double(), -1)
        for token in {*counts, int(p.argmax())}:
            # 4.4 standard deviations: with some 15 tokens looked at, a false alarm in 10,000 runs; the least is for rare tokens.
            allowed = max(4.4 * math.sqrt(n * p[token] * (1 - p[token])), 4.0)
            assert abs(counts[token] - n * p[token]) <= allowed, (position, token)


def test_killed_it_is_skipped_and_restarted_it_answers_again(serve, expert, question):
    skipping = expert(serve.url)
    (known,) = skipping.answer([question(0, 5, seed=1)])
    serve.kill()
    lost, cached = skipping.answer([question(6, seed=1), question(0, 5, seed=1)])
    assert lost is None
    assert cached.tokens.equal(known.tokens)  # without a server
    assert skipping.counters["failed"] == 1

    pausing = expert(serve.url, on_failure="pause")
    restart = threading.Thread(target=serve.start)
    restart.start()
    (waited,) = pausing.answer([question(8, seed=1)])
    restart.join()
    assert waited.positions == (8,)
    assert pausing.counters["failed"] == 0
    assert skipping.answer([question(6, seed=1)]) != [None]


def test_killed_in_the_midst_of_a_batch_what_arrived_is_kept(serve, expert, question):
    one = expert(serve.url, samples=200, concurrency=2)
    killer = threading.Thread(target=lambda: (_until(lambda: one.counters["calls"] > 20), serve.kill()))
    killer.start()
    (part,) = one.answer([question(0, 5, seed=2)])
    killer.join()
    serve.start()
    got = int((part.logp > -math.inf).sum())
    assert 1 <= got < 400
    assert one.counters["failed"] == 2
    (whole,) = one.answer([question(0, 5, seed=2)])
    assert int((whole.logp > -math.inf).sum()) == 400
    # Each draw was paid for once; one per request under way may have died with its answer.
    assert 400 <= one.counters["calls"] <= 402


def _until(true):
    for _ in range(6000):
        if true():
            return
        time.sleep(0.005)
    raise AssertionError("never came true")
