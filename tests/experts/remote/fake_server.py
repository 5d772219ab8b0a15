"""A server of the OpenAI protocol on the loopback, which answers as a policy would or misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class FakeServer:
    """``answer(path, body)`` makes the document, or ``(status, document)``. ``script`` comes first, one word per request:

    ok · slow (after ``delay_s``) · 429 (Retry-After: 1) · 500 · garbage · schema · truncated · drop

    ``always`` is played when the script is over.
    """

    def __init__(self, answer, *, script=(), always="ok", delay_s=1.0):
        self.answer, self.script, self.always, self.delay_s = answer, deque(script), always, delay_s
        self.requests, self.arrivals, self.keys = [], [], []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self):
        """Also again after `stop`, on the same port."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                _reply(self, 200, {"object": "list", "data": [{"id": "house", "object": "model"}]})

            def do_POST(self):
                server.handle(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def handle(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append(body)
            self.arrivals.append(time.monotonic())
            self.keys.append(handler.headers.get("Authorization", ""))
            act = self.script.popleft() if self.script else self.always
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        try:
            self.play(act, handler, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a client that did not wait
        finally:
            with self.lock:
                self.busy -= 1

    def play(self, act, handler, body):
        if act == "slow":
            time.sleep(self.delay_s)
        if act == "429":
            _reply(handler, 429, {"error": {"message": "too many"}}, {"Retry-After": "1"})
        elif act == "500":
            _reply(handler, 500, {"error": {"message": "broken"}})
        elif act == "garbage":
            _reply(handler, 200, "<html>gateway</html>")
        elif act == "schema":
            _reply(handler, 200, {"choices": [{"message": 3}], "usage": "none"})
        elif act == "truncated":
            _reply(handler, 200, json.dumps(self.answer(handler.path, body))[:-20], {"Content-Length": "4000"})
        elif act == "drop":
            handler.connection.close()
        else:
            answer = self.answer(handler.path, body)
            status, document = answer if isinstance(answer, tuple) else (200, answer)
            _reply(handler, status, document)


def _reply(handler, status, document, headers=None):
    data = (document if isinstance(document, str) else json.dumps(document)).encode()
    handler.send_response(status)
    for name, value in (
        {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
    ).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def completion(*texts, reason="length", usage=(10, 4)):
    """A completions document of these texts."""
    choices = [{"index": i, "text": text, "finish_reason": reason} for i, text in enumerate(texts)]
    document = {"object": "text_completion", "model": "house", "choices": choices}
    if usage:
        document["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return document


class PolicyAnswers:
    """Answers completions as vLLM would with this policy: ``n`` draws by ``seed``, ``prompt_logprobs`` as vLLM writes them."""

    def __init__(self, model, tokenizer, *, gives_n=True):
        self.model, self.tokenizer, self.gives_n = model, tokenizer, gives_n
        self.lock = threading.Lock()

    def __call__(self, path, body):
        assert path == "/v1/completions"
        prompt = body["prompt"]
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        with self.lock, torch.no_grad():
            made = self.draw(ids, body)
            texts = [self.tokenizer.decode(m, skip_special_tokens=True) for m in made]
            ends = [m[-1] == self.tokenizer.eos_token_id for m in made]
            document = completion(*texts, usage=(len(ids), sum(map(len, made))))
            for choice, ended in zip(document["choices"], ends, strict=True):
                choice["finish_reason"] = "stop" if ended else "length"
            if body.get("prompt_logprobs"):
                document["choices"][0]["prompt_logprobs"] = self.prompt_logprobs(ids, body["prompt_logprobs"])
        return document

    def draw(self, ids, body):
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        rows = torch.tensor([ids] * (body.get("n", 1) if self.gives_n else 1))
        for _ in range(body["max_tokens"]):
            p = torch.softmax(self.model(rows).logits[:, -1] / body["temperature"], -1)
            rows = torch.cat([rows, torch.multinomial(p, 1, generator=generator)], 1)
        eos = self.tokenizer.eos_token_id
        made = rows[:, len(ids) :].tolist()
        return [m[: m.index(eos) + 1] if eos in m else m for m in made]

    def prompt_logprobs(self, ids, k):
        logp = torch.log_softmax(self.model(torch.tensor([ids])).logits[0], -1)
        entries = [None]
        for token, row in zip(ids[1:], logp, strict=False):
            order = row.argsort(descending=True).tolist()
            shown = order[:k] if token in order[:k] else [token, *order[:k]]
            entries.append(
                {i: {"logprob": float(row[i]), "rank": order.index(i) + 1, "decoded_token": str(i)} for i in shown}
            )
        return entries
