"""How a remote expert is asked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

__all__ = ["ServerSettings"]

OURS = (
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "temperature",
    "n",
    "seed",
    "stop",
    "stream",
    "prompt_logprobs",
    "echo",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a remote expert is asked. Every refusal names the setting and the mend."""

    base_url: str
    """Where the protocol begins, usually ending in ``/v1``: ``"http://localhost:8000/v1"``. No user name, password or query."""
    model: str
    """The model's name on the server. It stands for the expert in the cache: give another model another name."""
    gives: Literal["topk", "samples"]
    """``topk``: log-probabilities of the likeliest tokens (vLLM 0.5.5 and later; same tokenizer as the policy).
    ``samples``: drawn text (any server, any tokenizer)."""
    api: Literal["completions", "chat"] = "completions"
    """``completions`` sends what the policy's tokenizer renders. ``chat`` sends messages, the last one the student's begun
    answer, with ``continue_final_message`` (vLLM, SGLang)."""
    top_k: int = 20
    """Tokens per state for ``topk``; 20 is the most that vLLM gives unless started with ``--max-logprobs``."""
    samples: int = 1
    """Draws per state for ``samples``."""
    answer_tokens: int = 4
    """Length in the server's tokens of the short continuation asked for at a state, at least 3: a token, the one that shows
    it to be whole, and an end."""
    temperature: float = 1.0
    """Of the draws; 1 is the expert's own distribution, which the estimate of forward cross-entropy needs (METHODS section 7)."""
    concurrency: int = 8
    """Requests under way at a time."""
    requests_per_minute: float | None = None
    """Requests are spaced evenly to this; None: no spacing."""
    timeout_s: float = 60.0
    """Seconds the server may be silent within a request."""
    retries: int = 4
    """Further attempts at a request, with growing waits."""
    max_calls: int | None = None
    """Answered or timed-out requests of the whole run, after which no more is asked and training goes on; None: no limit.
    Each process keeps its own account."""
    max_tokens: int | None = None
    """The same for tokens, prompt and answer together; requests under way may overrun it."""
    on_failure: Literal["skip", "pause"] = "skip"
    """``skip``: what failed goes without an answer. ``pause``: it is asked again, after 1 to 60 s, until the server answers."""
    key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, in capitals; may be unset where the server wants none."""
    cache: str | None = None
    """SQLite file of answers, on a local disk; None: none is kept."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """A server's own options, added to each request. ``{"add_special_tokens": false}`` where the server (vLLM) would put a
    second beginning-of-sequence token before the text; ``{"skip_special_tokens": false}`` where answers hold such tokens."""

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        if not self.model or not isinstance(self.model, str):
            raise ValueError(f"model: must be the model's name on the server, got {self.model!r}")
        _one_of("gives", self.gives, "topk", "samples")
        _one_of("api", self.api, "completions", "chat")
        _one_of("on_failure", self.on_failure, "skip", "pause")
        if self.gives == "topk" and self.api != "completions":
            raise ValueError("api: top-k is asked for by token ids, which chat has not; use api: completions")
        if self.gives == "topk" and self.temperature != 1:
            raise ValueError("temperature: a server's top-k log-probabilities are those at 1; leave it at 1")
        for name, least in (("top_k", 1), ("samples", 1), ("answer_tokens", 3), ("concurrency", 1), ("retries", 0)):
            _whole(name, getattr(self, name), least)
        for name in ("max_calls", "max_tokens"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        _number("temperature", self.temperature, 0.0)
        _number("timeout_s", self.timeout_s, 1e-3)
        if self.requests_per_minute is not None:
            _number("requests_per_minute", self.requests_per_minute, 1e-3)
        _check_name(self.key_env)
        _check_extra(self.extra_body)

    def __str__(self) -> str:
        return f"{self.model} at {self.base_url}"


def _check_url(url: object) -> None:
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("base_url: must be an address such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Not shown: what stands there is likely a secret.
        raise ValueError("base_url: holds a user name, password or query; keep keys in the variable that key_env names")


def _check_name(name: object) -> None:
    # Whoever wrote the key itself here must not find it in a traceback or in the run's config; many keys (hf_..., sk_...) are
    # identifiers, few are in capitals.
    if not isinstance(name, str) or not name.isidentifier() or not name.isupper():
        raise ValueError(
            "key_env: must be the name of an environment variable, in capitals such as OPENAI_API_KEY, not a key"
        )


def _one_of(name: str, value: object, *allowed: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is none of {', '.join(allowed)}")


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: must be a whole number of at least {least}, got {value!r}")


def _number(name: str, value: object, least: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < least:
        raise ValueError(f"{name}: must be a number of at least {least:g}, got {value!r}")


def _check_extra(extra: object) -> None:
    if not isinstance(extra, Mapping):
        raise ValueError(f"extra_body: must be a mapping of the server's own options, got {type(extra).__name__}")
    for name in extra:
        if name in OURS:
            raise ValueError(f"extra_body: {name!r} is set by the expert itself; use its own settings")
    try:
        json.dumps(dict(extra))
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra_body: is not JSON ({error})") from None
