"""An expert behind a server of the OpenAI protocol: vLLM, SGLang, ``transformers serve``, a paid service.

It gives its distribution at the student's states in one of two forms:

- ``topk``: one request per rollout, whose prompt is the token ids of prompt and completion, with vLLM's option
  ``prompt_logprobs``. The response's ``choices[0].prompt_logprobs`` has an entry per prompt token: ``null`` for the first, else
  ``{"token id": {"logprob": -0.1, "rank": 1, "decoded_token": "x"}, ...}`` with the k most likely tokens and, if it is not among
  them, the prompt's own token (vLLM 0.5.5 and later).
- ``samples``: one short continuation per sample and state, whose text is converted to the policy's tokens
  (``errata.experts.retokenize``).

Answers are cached on disk by the content of the request, so that a resumed run repeats no request.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from errata.experts.queries import Answer, Query
from errata.experts.remote.cache import AnswerCache, fingerprint
from errata.experts.remote.client import (
    Client,
    JsonObject,
    MalformedResponseError,
    NoAnswerError,
    RejectedRequestError,
    Session,
    run_in_thread,
)
from errata.experts.remote.settings import ServerSettings
from errata.experts.retokenize import REPLACEMENT, Reply, sampled_tokens, text_of

__all__ = ["ServerExpert", "ServerSettings"]

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MINUS_INFINITY = -9999.0
"""The log-probability that vLLM writes for minus infinity."""

_PROBE = "2+2="
"""Text of the request that tests the server at the start of a run."""

Row = list[tuple[int, float]]
"""(token id, log-weight) of one state."""


class ServerExpert:
    """An expert that is queried over HTTP. ``settings`` are those of `ServerSettings`.

    A request that fails, or is not made because the budget is spent, leaves its own query without an answer and never stops the
    run (unless ``on_failure: pause`` waits). ``counters`` are sums over the whole run, a resumed one's included:

    - ``calls``: requests that were answered or timed out; ``tokens_in``, ``tokens_out``: their tokens;
    - ``cached``: answers taken from the cache;
    - ``failed``: requests without an answer; ``refused``: requests not made because the budget is spent;
    - ``misaligned``: states within a character, and replies that determine no token of the policy;
    - ``seconds``: time spent waiting.

    Args:
        base_url: address of the API, usually ending in ``/v1``.
        model: the model's name on the server.
        tokenizer: the policy's.
    Raises:
        ValueError: an invalid setting, with a remedy; a tokenizer without an end-of-sequence token.
        ImportError: the ``openai`` client is not installed.
    """

    def __init__(self, base_url: str, model: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> None:
        self.settings = _settings(base_url=base_url, model=model, **settings)
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "tokenizer: has no end-of-sequence token, which stands for the end of an expert's answer; set one"
            )
        self._tokenizer = tokenizer
        self._client = Client(self.settings)
        self._cache = None if self.settings.cache is None else AnswerCache(self.settings.cache)

    @property
    def gives(self) -> str:
        """``topk`` or ``samples``."""
        return self.settings.gives

    @property
    def temperature(self) -> float:
        """The temperature of its answers."""
        return self.settings.temperature

    @property
    def counters(self) -> dict[str, float]:
        """A copy of the counters, by name."""
        return dict(self._client.counters)

    def state_dict(self) -> dict[str, Any]:
        """The counters, JSON-serialisable."""
        return {"counters": self.counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the counters of a ``state_dict``. Raises ``ValueError`` if ``state`` has none."""
        spent = state.get("counters")
        if not isinstance(spent, dict):
            raise ValueError("state: has no 'counters'; load the state_dict of a ServerExpert")
        for name in self._client.counters:
            self._client.counters[name] = float(spent.get(name, 0.0))

    def close(self) -> None:
        """Close the cache."""
        if self._cache is not None:
            self._cache.close()

    def check(self) -> None:
        """Test the server with one small request of this expert's form. Raises ``ValueError`` with a remedy, in one line."""
        run_in_thread(self._test_request)

    def answer(self, queries: Sequence[Query]) -> list[Answer | None]:
        """The expert's distributions at the queried states, one answer per query, ``None`` where there is none.

        Blocks until all requests are answered or have failed.
        Raises ``ValueError`` naming the query if one has a position outside its completion, no prompt, or no messages for
        ``api: chat``.
        """
        for row, query in enumerate(queries):
            self._check_query(row, query)
        started = time.monotonic()
        try:
            return run_in_thread(lambda: self._answer(queries))
        finally:
            self._client.counters["seconds"] += time.monotonic() - started

    def _check_query(self, row: int, query: Query) -> None:
        length = len(query.completion_ids)
        for position in query.positions:
            if not 0 <= position < length:
                raise ValueError(
                    f"queries: row {row} has position {position} in a completion of {length} tokens; "
                    f"positions are from 0 to {length - 1}"
                )
        if not query.prompt_ids:
            raise ValueError(f"queries: row {row} has no prompt_ids; give the prompt at least one token")
        if self.settings.api == "chat" and isinstance(query.prompt, str):
            raise ValueError(f"queries: row {row} has text as prompt, not chat messages; use api: completions")

    async def _answer(self, queries: Sequence[Query]) -> list[Answer | None]:
        answer_one = self._topk if self.gives == "topk" else self._samples
        async with self._client.session() as session:
            return list(await asyncio.gather(*(answer_one(session, query) for query in queries)))

    # ── top-k ──

    async def _topk(self, session: Session, query: Query) -> Answer | None:
        positions = sorted(set(query.positions))
        if not positions:
            return _empty()
        ids = [*query.prompt_ids, *query.completion_ids[: positions[-1] + 1]]
        body = self._body(prompt=ids, max_tokens=1, temperature=1.0, prompt_logprobs=self.settings.top_k)
        key = fingerprint({"topk": body, "positions": positions})
        rows: list[list[list[float]]] | None = self._from_cache(key)
        if rows is None:
            at = [len(query.prompt_ids) + t for t in positions]
            rows = await session.request(body, lambda document: self._top_rows(document, at), (len(ids), 1))
            if rows is None:
                return None
            self._to_cache(key, rows)
        return _sparse({t: [(int(i), logp) for i, logp in row] for t, row in zip(positions, rows, strict=True)})

    def _top_rows(self, document: JsonObject, at: Sequence[int]) -> list[list[list[float]]]:
        """``[id, log-probability]`` of the k most likely tokens at each prompt position of ``at``, the most likely first."""
        entries = _prompt_logprobs(document)
        if len(entries) <= at[-1]:
            raise MalformedResponseError(f"prompt_logprobs has {len(entries)} entries, {at[-1] + 1} tokens were sent")
        return [self._top_row(entries[index]) for index in at]

    def _top_row(self, entry: Any) -> list[list[float]]:
        try:
            found = [(int(name), float(value["logprob"])) for name, value in entry.items()]
        except (AttributeError, TypeError, KeyError, ValueError):
            raise MalformedResponseError("an entry of prompt_logprobs is not in vLLM's form") from None
        # A model's head may have rows beyond its vocabulary.
        known = [(i, logp) for i, logp in found if 0 <= i < len(self._tokenizer) and MINUS_INFINITY < logp <= 1e-3]
        if not known:
            raise MalformedResponseError("an entry of prompt_logprobs has no token of the vocabulary")
        known.sort(key=lambda pair: (-pair[1], pair[0]))
        return [[i, logp] for i, logp in known[: self.settings.top_k]]

    # ── samples ──

    async def _samples(self, session: Session, query: Query) -> Answer | None:
        positions = sorted(set(query.positions))
        if not positions:
            return _empty()
        tokenizer = self._tokenizer
        readable = [t for t in positions if not text_of(tokenizer, query.completion_ids[:t]).endswith(REPLACEMENT)]
        self._client.counters["misaligned"] += len(positions) - len(readable)
        replies = await asyncio.gather(*(self._replies(session, query, t) for t in readable))
        found: dict[int, list[int]] = {t: [] for t in positions}
        for t, reply in ((t, reply) for t, some in zip(readable, replies, strict=True) for reply in some):
            pairs = sampled_tokens(tokenizer, query, t, reply, self.settings.answer_tokens - 2)
            self._client.counters["misaligned"] += not pairs
            for at, token in pairs:
                if at in found:
                    found[at].append(token)
        rows = {t: [(token, -math.log(len(tokens))) for token in tokens] for t, tokens in found.items() if tokens}
        return _sparse(rows) if rows else None

    async def _replies(self, session: Session, query: Query, t: int) -> list[Reply]:
        """Up to ``samples`` continuations at state t. A server that returns fewer than ``n`` gets further requests."""
        body, wanted = self._state_body(query, t), self.settings.samples
        keys = [
            fingerprint({"api": self.settings.api, "samples": body, "seed": query.seed, "draw": draw})
            for draw in range(wanted)
        ]
        cached = [self._from_cache(key) for key in keys]
        replies = {draw: Reply(*reply) for draw, reply in enumerate(cached) if reply is not None}
        prompt_tokens = len(query.prompt_ids) + t
        while missing := [draw for draw in range(wanted) if draw not in replies]:
            # Each request has its own seed, or a server would draw the same at every state.
            more = {"seed": int(keys[missing[0]][:8], 16) >> 1} | ({"n": len(missing)} if len(missing) > 1 else {})
            estimate = (prompt_tokens, len(missing) * self.settings.answer_tokens)
            found = await session.request(body | more, self._read_replies, estimate)
            if found is None:
                break
            for draw, reply in zip(missing, found, strict=False):
                replies[draw] = reply
                self._to_cache(keys[draw], reply)
        return [replies[draw] for draw in sorted(replies)]

    def _state_body(self, query: Query, t: int) -> JsonObject:
        """The request for continuations at state t, without seed and number."""
        common = {"max_tokens": self.settings.answer_tokens, "temperature": self.settings.temperature}
        prefix = query.completion_ids[:t]
        if self.settings.api == "completions":
            return self._body(prompt=text_of(self._tokenizer, [*query.prompt_ids, *prefix]), **common)
        messages = list(query.prompt)
        if not prefix:
            return self._body(messages=messages, **common)
        messages.append({"role": "assistant", "content": text_of(self._tokenizer, prefix)})
        return self._body(messages=messages, continue_final_message=True, add_generation_prompt=False, **common)

    def _read_replies(self, document: JsonObject) -> list[Reply]:
        try:
            replies = [Reply(self._text_of(c), c.get("finish_reason") == "stop") for c in document["choices"]]
        except (AttributeError, TypeError, KeyError):
            raise MalformedResponseError("it has no choices") from None
        if not replies or not all(isinstance(reply.text, str) for reply in replies):
            raise MalformedResponseError("a choice has no text")
        return replies

    def _text_of(self, choice: JsonObject) -> Any:
        if self.settings.api == "completions":
            return choice["text"]
        content = choice["message"]["content"]
        return "" if content is None else content

    # ── both forms ──

    def _body(self, **request: Any) -> JsonObject:
        return {"model": self.settings.model, **request, **self.settings.extra_body}

    def _from_cache(self, key: str) -> Any:
        found = None if self._cache is None else self._cache.get(key)
        self._client.counters["cached"] += found is not None
        return found

    def _to_cache(self, key: str, value: Any) -> None:
        if self._cache is not None:
            self._cache.put(key, value)

    async def _test_request(self) -> None:
        async with self._client.session() as session:
            try:
                await session.attempt(self._probe(), self._read_probe, (8, 3), retries=0)
            except NoAnswerError as error:
                raise ValueError(await self._explained(session, error)) from None

    def _probe(self) -> JsonObject:
        if self.gives == "topk":
            return self._body(prompt=_PROBE, max_tokens=1, temperature=1.0, prompt_logprobs=self.settings.top_k)
        common = {"max_tokens": self.settings.answer_tokens, "temperature": self.settings.temperature}
        if self.settings.api == "completions":
            return self._body(prompt=_PROBE, **common)
        messages = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
        return self._body(messages=messages, continue_final_message=True, add_generation_prompt=False, **common)

    def _read_probe(self, document: JsonObject) -> None:
        if self.gives == "samples":
            self._read_replies(document)
            return
        # Sent as text, so that the server's own tokenizer shows in the ids that come back.
        entries, ids = _prompt_logprobs(document), self._tokenizer(_PROBE)["input_ids"]
        if len(entries) != len(ids) or any(
            str(i) not in (row or ()) for i, row in zip(ids[1:], entries[1:], strict=True)
        ):
            raise ValueError(
                f"model: {self.settings} splits text into other tokens than the policy, so its top-k cannot be used; "
                "use an expert with the policy's tokenizer or gives: samples"
            )

    async def _explained(self, session: Session, error: NoAnswerError) -> str:
        """The message for a failed test request: the setting, the server's answer and a remedy."""
        settings = self.settings
        if isinstance(error, RejectedRequestError):
            remedy = {
                "topk": "prompt_logprobs is an option of vLLM, up to its --max-logprobs: use gives: samples or a smaller top_k",
                "chat": "continuing a partial answer (continue_final_message) needs vLLM or SGLang: use api: completions",
                "completions": "correct model or extra_body",
            }["topk" if self.gives == "topk" else settings.api]
            return f"expert: {settings} rejects this expert's requests ({error}); {remedy}"
        if error.status in (401, 403):
            return f"key_env: {settings} does not accept the key in ${settings.key_env} ({error}); set it"
        if error.status == 404:
            available = ", ".join(await session.models()) or "none"
            return (
                f"model: {settings} was not found ({error}); models listed: {available}; base_url usually ends in /v1"
            )
        return f"base_url: {settings} does not answer ({error}); start the server or correct base_url"


def _settings(**settings: Any) -> ServerSettings:
    for name in settings:
        if name not in ServerSettings.__dataclass_fields__:
            raise ValueError(
                f"{name}: no such setting of a remote expert; it has {', '.join(ServerSettings.__slots__)}"
            )
    if "gives" not in settings:
        raise ValueError("gives: missing; set topk (vLLM, same tokenizer as the policy) or samples (any server)")
    return ServerSettings(**settings)


def _prompt_logprobs(document: JsonObject) -> list[Any]:
    try:
        choice = document["choices"][0]
        entries = choice.get("prompt_logprobs")
    except (AttributeError, TypeError, KeyError, IndexError):
        raise MalformedResponseError("it has no choices") from None
    if entries is None:
        raise ValueError("gives: the server ignores prompt_logprobs, an option of vLLM; use gives: samples")
    if not isinstance(entries, list):
        raise MalformedResponseError("prompt_logprobs is not a list")
    return entries


def _empty() -> Answer:
    return Answer((), torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0))


def _sparse(rows: dict[int, Row]) -> Answer:
    """The rows of each state as one padded `Answer`."""
    positions = tuple(sorted(rows))
    width = max(len(row) for row in rows.values())
    tokens = torch.zeros(len(positions), width, dtype=torch.long)
    logp = torch.full((len(positions), width), -math.inf)
    for index, position in enumerate(positions):
        ids, values = zip(*rows[position], strict=True)
        tokens[index, : len(ids)] = torch.tensor(ids)
        logp[index, : len(ids)] = torch.tensor(values)
    return Answer(positions, tokens, logp)
