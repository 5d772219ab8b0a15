"""Settings of a remote expert."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

__all__ = ["ServerSettings"]

RESERVED = (
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
"""Request fields that the expert sets itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of a remote expert. Raises ``ValueError`` naming the setting and a remedy."""

    base_url: str
    """Address of the API, usually ending in ``/v1``: ``"http://localhost:8000/v1"``. Without user name, password or query."""
    model: str
    """The model's name on the server. The cache identifies the model by it, so different models need different names."""
    gives: Literal["topk", "samples"]
    """``topk``: log-probabilities of the most likely tokens (vLLM 0.5.5 and later; same tokenizer as the policy).
    ``samples``: sampled text (any server, any tokenizer)."""
    api: Literal["completions", "chat"] = "completions"
    """``completions`` sends text, with the policy's chat template. ``chat`` sends messages, the last of which is the student's
    partial answer, with ``continue_final_message`` (vLLM, SGLang)."""
    top_k: int = 20
    """Tokens per state for ``topk``; vLLM gives at most 20 unless started with ``--max-logprobs``."""
    samples: int = 1
    """Samples per state for ``samples``."""
    answer_tokens: int = 4
    """Length of a continuation in the server's tokens, at least 3: one token, a further one that shows the first to be complete,
    and an end-of-sequence token."""
    temperature: float = 1.0
    """Of the samples. The run's own, or they are no samples of the distribution that the policy is compared with."""
    concurrency: int = 8
    """Largest number of concurrent requests."""
    requests_per_minute: float | None = None
    """Rate limit, to which requests are evenly spaced; ``None``: no limit."""
    timeout_s: float = 60.0
    """Seconds without a byte from the server after which a request times out."""
    retries: int = 4
    """Retries of a failed request, with exponential backoff."""
    max_calls: int | None = None
    """Budget of answered or timed-out requests for the whole run, in each process; when it is spent, training continues without
    further requests. ``None``: no limit."""
    max_tokens: int | None = None
    """Budget of tokens, prompts and answers together; requests in flight may exceed it. ``None``: no limit."""
    on_failure: Literal["skip", "pause"] = "skip"
    """If all retries fail: ``skip`` leaves the query without an answer, ``pause`` repeats it every 1 to 60 s until the server
    answers."""
    key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable with the API key, in capitals; may be unset if the server needs no key."""
    cache: str | None = None
    """SQLite file of the cache of answers, on a local disk; ``None``: no cache."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """The server's own options, added to each request. ``{"add_special_tokens": false}`` if the server (vLLM) would add a second
    beginning-of-sequence token before the text; ``{"skip_special_tokens": false}`` if answers contain special tokens."""

    def __post_init__(self) -> None:
        _check_url(self.base_url)
        if not self.model or not isinstance(self.model, str):
            raise ValueError(f"model: must be the model's name on the server, got {self.model!r}")
        _one_of("gives", self.gives, "topk", "samples")
        _one_of("api", self.api, "completions", "chat")
        _one_of("on_failure", self.on_failure, "skip", "pause")
        if self.gives == "topk" and self.api != "completions":
            raise ValueError(
                "api: a top-k query is sent as token ids, which chat does not accept; use api: completions"
            )
        if self.gives == "topk" and self.temperature != 1:
            raise ValueError("temperature: a server gives top-k log-probabilities at temperature 1; leave it at 1")
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
        # The address is not shown, because that part of it is probably a secret.
        raise ValueError("base_url: has a user name, password or query; put the key in the variable that key_env names")


def _check_name(name: object) -> None:
    # If a user writes the key itself here, it must not appear in a traceback or in the run's config. Many keys (hf_..., sk_...)
    # are identifiers, few are in capitals.
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
        if name in RESERVED:
            raise ValueError(f"extra_body: {name!r} is set by the expert itself; use the expert's settings")
    try:
        json.dumps(dict(extra))
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra_body: cannot be written as JSON ({error})") from None
