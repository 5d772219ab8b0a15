"""A stand-in for ``vllm serve`` as TRL's client speaks to it: it samples with a model of its own and is sent weights over gloo.

It has a known bias: its logits are the model's times ``scale``, and the log-probs it returns are those it sampled with.
"""

from __future__ import annotations

import datetime
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch.distributed import ProcessGroupGloo, TCPStore


def group(info: dict[str, Any], rank: int) -> ProcessGroupGloo:
    """The weight update group of the trainer (rank 0) and the server (rank 1), apart from the run's own process group."""
    wait = datetime.timedelta(seconds=60)
    store = TCPStore(info["master_address"], info["master_port"], info["world_size"], is_master=rank == 0, timeout=wait)
    return ProcessGroupGloo(store, rank, info["world_size"], wait)


class RolloutServer:
    """Serves ``model`` on a loopback port from threads of this process.

    ``calls`` are the paths of all POSTs; ``used`` are the weights of each request for completions, ``sampled`` its choices.
    """

    def __init__(self, model: Any, scale: float = 1.0) -> None:
        self.model, self.scale = model.eval(), scale
        self.calls: list[str] = []
        self.used: list[dict[str, torch.Tensor]] = []
        self.sampled: list[dict[str, Any]] = []
        self.group: ProcessGroupGloo | None = None
        self.generator = torch.Generator().manual_seed(0)
        self.updating = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def answer(self, found: dict[str, Any], status: int = 200) -> None:
                body = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                found = outer.described().get(self.path.partition("?")[0])
                self.answer(*(({"error": self.path}, 404) if found is None else (found,)))

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                outer.calls.append(self.path)
                try:
                    self.answer(outer.handlers()[self.path](asked))
                except Exception as error:
                    self.answer({"error": f"{type(error).__name__}: {error}"}, 400)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def described(self) -> dict[str, dict[str, Any]]:
        config = {
            "weight_transfer_config": {"backend": "gloo"},
            "model_config": {"logprobs_mode": "processed_logprobs"},
        }
        return {
            "/health": {},
            "/v1/models": {"data": [{"id": "policy"}]},
            "/server_info": {"vllm_config": config},
            "/get_world_size": {"world_size": 1},
        }

    def handlers(self) -> dict[str, Any]:
        return {
            "/v1/completions": self.complete,
            "/init_weight_transfer_engine": self.join,
            "/start_weight_update": lambda asked: self.update(True),
            "/update_weights": self.receive,
            "/finish_weight_update": lambda asked: self.update(False),
            "/reset_prefix_cache": lambda asked: {"success": True},
        }

    def join(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.group = group(asked["init_info"], 1)
        return {}

    def update(self, begins: bool) -> dict[str, Any]:
        if self.updating == begins:
            raise RuntimeError("an update begins within another, or ends before it began")
        self.updating = begins
        return {}

    @torch.no_grad()
    def receive(self, asked: dict[str, Any]) -> dict[str, Any]:
        info, own = asked["update_info"], dict(self.model.named_parameters())
        if not self.updating or set(info["names"]) != set(own):
            raise RuntimeError(
                f"not the model's weights, or outside an update: {sorted(set(info['names']) ^ set(own))}"
            )
        for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
            received = torch.empty(shape, dtype=getattr(torch, dtype))
            self.group.broadcast(received, 0).wait()
            own[name].copy_(received.view_as(own[name]))
        return {}

    @torch.no_grad()
    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        if (asked["top_p"], asked["top_k"], asked["min_p"], asked["repetition_penalty"]) != (1.0, 0, 0.0, 1.0):
            raise ValueError("this stand-in samples from the whole distribution")
        self.used.append({name: value.clone() for name, value in self.model.named_parameters()})
        found = [self.draw(prompt, asked) for prompt in asked["prompt"] for _ in range(asked["n"])]
        self.sampled += found
        return {"choices": found}

    def draw(self, prompt: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        """One completion, token by token; at temperature 0 the likeliest tokens."""
        ids: list[int] = []
        values: list[float] = []
        while len(ids) < asked["max_tokens"] and self.model.generation_config.eos_token_id not in ids:
            logits = self.scale * self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1].double()
            logp = (logits / (asked["temperature"] or 1.0)).log_softmax(-1)
            greedy = asked["temperature"] == 0
            token = int(logp.argmax()) if greedy else int(torch.multinomial(logp.exp(), 1, generator=self.generator))
            ids.append(token)
            values.append(float(logp[token]))
        logprobs = {
            "tokens": [f"token_id:{token}" for token in ids],
            "token_logprobs": values,
            "top_logprobs": [{f"token_id:{token}": value} for token, value in zip(ids, values, strict=True)],
        }
        return {"prompt_token_ids": prompt, "token_ids": ids, "logprobs": logprobs}
