"""A remote expert behind a server that speaks the OpenAI protocol: vLLM, SGLang, ``transformers serve``, a paid service.

It marks the student's states in one of two ways (METHODS section 7):

- ``topk``: one request per rollout, whose prompt is the prompt's and the completion's token ids, with vLLM's own option
  ``prompt_logprobs``. The answer's ``choices[0].prompt_logprobs`` has an entry per prompt token: ``null`` for the first, else
  ``{"token id": {"logprob": -0.1, "rank": 1, "decoded_token": "x"}, ...}``, the k likeliest and, where it is none of them,
  the prompt's own token as one more (vLLM 0.5.5 and later).
- ``samples``: one short continuation per draw and state. Its text is read with the *policy's* tokenizer (`reading`).

What a run pays for is cached on disk by content, so that a resumed run asks nothing twice.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from errata.experts.queries import Answer, Question
from errata.experts.remote.cache import AnswerCache, fingerprint
from errata.experts.remote.client import Asker, GarbledError, NoAnswerError, Session, WrongRequestError, in_own_loop
from errata.experts.remote.settings import ServerSettings
from errata.experts.retokenize import HALF, Reply, draws, text_of

__all__ = ["ServerExpert", "ServerSettings"]

LEAST_LOGP = -9999.0
"""What vLLM writes for minus infinity."""

_PROBE = "2+2="


class ServerExpert:
    """An expert asked over HTTP. ``settings`` are those of `ServerSettings`.

    A request that fails, finds the server down or the budget spent costs its own answer, never the run (unless
    ``on_failure: pause`` waits). What it all came to is in ``counters``, sums over the whole run, also a resumed one:

    ``calls`` and ``tokens_in``, ``tokens_out``: paid for · ``cached``: answers that were not asked for again · ``failed``:
    requests without an answer · ``refused``: requests not made because the budget is spent · ``misaligned``: states
    within a character, and draws of which the policy's tokenizer makes no token · ``seconds``: spent waiting.

    Args:
        base_url: where the protocol begins, usually ending in ``/v1``.
        model: the model's name on the server.
        tokenizer: the policy's.
    Raises:
        ValueError: a setting that cannot be, named with its mend.
        ImportError: the ``openai`` client is not installed.
    """

    def __init__(self, base_url: str, model: str, tokenizer: Any, **settings: Any) -> None:
        self.settings = _settings(base_url=base_url, model=model, **settings)
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: has no end-of-sequence token, by which an expert's end would be learned")
        self._tokenizer = tokenizer
        self._asker = Asker(self.settings)
        self._cache = None if self.settings.cache is None else AnswerCache(self.settings.cache)

    @property
    def gives(self) -> str:
        """``topk`` or ``samples``."""
        return self.settings.gives

    @property
    def counters(self) -> dict[str, float]:
        return dict(self._asker.counters)

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable: what was spent."""
        return {"counters": self.counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the account that wrote ``state``. Raises ``ValueError`` if it holds none."""
        spent = state.get("counters")
        if not isinstance(spent, dict):
            raise ValueError("state: has no 'counters'; was it written by another class?")
        for name in self._asker.counters:
            self._asker.counters[name] = float(spent.get(name, 0.0))

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def check(self) -> None:
        """Make one small request of the kind this expert will make. Raises ``ValueError`` with the mend in one line."""
        in_own_loop(self._check)

    def answer(self, questions: Sequence[Question]) -> list[Answer | None]:
        """What the expert would write at the asked states, in the questions' order.

        ``None`` for a question of which nothing could be had. Blocks until all is answered or given up.
        Raises ``ValueError`` naming the question if one asks for a state that it has not, or for chat without messages.
        """
        for row, question in enumerate(questions):
            self._check_question(row, question)
        started = time.monotonic()
        try:
            return in_own_loop(lambda: self._answer(questions))
        finally:
            self._asker.counters["seconds"] += time.monotonic() - started

    def _check_question(self, row: int, question: Question) -> None:
        length = len(question.completion_ids)
        for position in question.positions:
            if not 0 <= position < length:
                raise ValueError(f"questions: row {row} asks position {position} of a completion of {length} tokens")
        if not question.prompt_ids:
            raise ValueError(f"questions: row {row} has no prompt_ids; an expert needs something to go on from")
        if self.settings.api == "chat" and isinstance(question.prompt, str):
            raise ValueError(f"questions: row {row} has a text for a prompt, not chat messages; use api: completions")

    async def _answer(self, questions: Sequence[Question]) -> list[Answer | None]:
        one = self._topk if self.gives == "topk" else self._samples
        async with self._asker.session() as session:
            return list(await asyncio.gather(*(one(session, question) for question in questions)))

    # ── top-k ──

    async def _topk(self, session: Session, question: Question) -> Answer | None:
        asked = sorted(set(question.positions))
        if not asked:
            return _empty()
        ids = [*question.prompt_ids, *question.completion_ids[: asked[-1] + 1]]
        body = self._body(prompt=ids, max_tokens=1, temperature=1.0, prompt_logprobs=self.settings.top_k)
        key = fingerprint({"topk": body, "positions": asked})
        rows: list[list[list[float]]] | None = self._recall(key)
        if rows is None:
            at = [len(question.prompt_ids) + t for t in asked]
            rows = await session.ask(body, lambda document: self._top_rows(document, at), (len(ids), 1))
            if rows is None:
                return None
            self._keep(key, rows)
        return _sparse({t: [(int(i), logp) for i, logp in row] for t, row in zip(asked, rows, strict=True)})

    def _top_rows(self, document: dict[str, Any], at: Sequence[int]) -> list[list[list[float]]]:
        """Per wanted prompt token the k likeliest of its place as ``[id, log-probability]``, likeliest first."""
        entries = _prompt_logprobs(document)
        if len(entries) <= at[-1]:
            raise GarbledError(f"prompt_logprobs has {len(entries)} entries, {at[-1] + 1} tokens were sent")
        return [self._top_row(entries[index]) for index in at]

    def _top_row(self, entry: Any) -> list[list[float]]:
        try:
            found = [(int(name), float(value["logprob"])) for name, value in entry.items()]
        except (AttributeError, TypeError, KeyError, ValueError):
            raise GarbledError("an entry of prompt_logprobs is not as vLLM writes it") from None
        # A model's head may be padded beyond its vocabulary.
        known = [(i, logp) for i, logp in found if 0 <= i < len(self._tokenizer) and LEAST_LOGP < logp <= 1e-3]
        if not known:
            raise GarbledError("an entry of prompt_logprobs has no token of the vocabulary")
        known.sort(key=lambda pair: (-pair[1], pair[0]))
        return [[i, logp] for i, logp in known[: self.settings.top_k]]

    # ── samples ──

    async def _samples(self, session: Session, question: Question) -> Answer | None:
        asked = sorted(set(question.positions))
        if not asked:
            return _empty()
        whole = [t for t in asked if not text_of(self._tokenizer, question.completion_ids[:t]).endswith(HALF)]
        self._asker.counters["misaligned"] += len(asked) - len(whole)
        replies = await asyncio.gather(*(self._replies(session, question, t) for t in whole))
        found: dict[int, list[int]] = {t: [] for t in asked}
        for t, reply in ((t, reply) for t, some in zip(whole, replies, strict=True) for reply in some):
            read = draws(self._tokenizer, question, t, reply, self.settings.answer_tokens - 2)
            self._asker.counters["misaligned"] += not read
            for at, token in read:
                if at in found:
                    found[at].append(token)
        rows = {t: [(token, -math.log(len(tokens))) for token in tokens] for t, tokens in found.items() if tokens}
        return _sparse(rows) if rows else None

    async def _replies(self, session: Session, question: Question, t: int) -> list[Reply]:
        """Up to ``samples`` continuations at state t. Servers that give fewer than ``n`` at once are asked for the rest."""
        body, wanted = self._state_body(question, t), self.settings.samples
        keys = [
            fingerprint({"api": self.settings.api, "samples": body, "seed": question.seed, "draw": draw})
            for draw in range(wanted)
        ]
        known = [self._recall(key) for key in keys]
        replies = {draw: Reply(*reply) for draw, reply in enumerate(known) if reply is not None}
        prompt_tokens = len(question.prompt_ids) + t
        while missing := [draw for draw in range(wanted) if draw not in replies]:
            # A seed of its own for each request, or a server would draw the same at every state.
            more = {"seed": int(keys[missing[0]][:8], 16) >> 1} | ({"n": len(missing)} if len(missing) > 1 else {})
            estimate = (prompt_tokens, len(missing) * self.settings.answer_tokens)
            found = await session.ask(body | more, self._read_replies, estimate)
            if found is None:
                break
            for draw, reply in zip(missing, found, strict=False):
                replies[draw] = reply
                self._keep(keys[draw], reply)
        return [replies[draw] for draw in sorted(replies)]

    def _state_body(self, question: Question, t: int) -> dict[str, Any]:
        common = {"max_tokens": self.settings.answer_tokens, "temperature": self.settings.temperature}
        begun = question.completion_ids[:t]
        if self.settings.api == "completions":
            return self._body(prompt=text_of(self._tokenizer, [*question.prompt_ids, *begun]), **common)
        messages = list(question.prompt)
        if not begun:
            return self._body(messages=messages, **common)
        messages.append({"role": "assistant", "content": text_of(self._tokenizer, begun)})
        return self._body(messages=messages, continue_final_message=True, add_generation_prompt=False, **common)

    def _read_replies(self, document: dict[str, Any]) -> list[Reply]:
        try:
            replies = [Reply(self._text_of(c), c.get("finish_reason") == "stop") for c in document["choices"]]
        except (AttributeError, TypeError, KeyError):
            raise GarbledError("it has no choices") from None
        if not replies or not all(isinstance(reply.text, str) for reply in replies):
            raise GarbledError("a choice has no text")
        return replies

    def _text_of(self, choice: dict[str, Any]) -> Any:
        if self.settings.api == "completions":
            return choice["text"]
        content = choice["message"]["content"]
        return "" if content is None else content

    # ── both ──

    def _body(self, **request: Any) -> dict[str, Any]:
        return {"model": self.settings.model, **request, **self.settings.extra_body}

    def _recall(self, key: str) -> Any:
        found = None if self._cache is None else self._cache.get(key)
        self._asker.counters["cached"] += found is not None
        return found

    def _keep(self, key: str, value: Any) -> None:
        if self._cache is not None:
            self._cache.put(key, value)

    async def _check(self) -> None:
        async with self._asker.session() as session:
            try:
                await session.attempt(self._probe(), self._read_probe, (8, 3), retries=0)
            except NoAnswerError as trouble:
                raise ValueError(await self._mend(session, trouble)) from None

    def _probe(self) -> dict[str, Any]:
        if self.gives == "topk":
            return self._body(prompt=_PROBE, max_tokens=1, temperature=1.0, prompt_logprobs=self.settings.top_k)
        common = {"max_tokens": self.settings.answer_tokens, "temperature": self.settings.temperature}
        if self.settings.api == "completions":
            return self._body(prompt=_PROBE, **common)
        messages = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
        return self._body(messages=messages, continue_final_message=True, add_generation_prompt=False, **common)

    def _read_probe(self, document: dict[str, Any]) -> None:
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
                "ask an expert with the policy's tokenizer or use gives: samples"
            )

    async def _mend(self, session: Session, trouble: NoAnswerError) -> str:
        settings = self.settings
        if isinstance(trouble, WrongRequestError):
            mend = {
                "topk": "prompt_logprobs is vLLM's, up to its --max-logprobs: use gives: samples or a smaller top_k",
                "chat": "a begun answer (continue_final_message) is vLLM's and SGLang's: use api: completions",
                "completions": "mend model or extra_body",
            }["topk" if self.gives == "topk" else settings.api]
            return f"expert: {settings} refuses what would be asked ({trouble}); {mend}"
        if trouble.status in (401, 403):
            return f"key_env: {settings} does not accept the key in ${settings.key_env} ({trouble}); set it"
        if trouble.status == 404:
            has = ", ".join(await session.models()) or "none"
            return f"model: {settings} is not there ({trouble}); models listed: {has}; base_url usually ends in /v1"
        return f"base_url: {settings} gives no answer ({trouble}); start the server or mend base_url"


def _settings(**settings: Any) -> ServerSettings:
    for name in settings:
        if name not in ServerSettings.__dataclass_fields__:
            raise ValueError(
                f"{name}: no such setting of a remote expert; it has {', '.join(ServerSettings.__slots__)}"
            )
    if "gives" not in settings:
        raise ValueError("gives: say topk (vLLM, same tokenizer as the policy) or samples (any server)")
    return ServerSettings(**settings)


def _prompt_logprobs(document: dict[str, Any]) -> list[Any]:
    try:
        choice = document["choices"][0]
        entries = choice.get("prompt_logprobs")
    except (AttributeError, TypeError, KeyError, IndexError):
        raise GarbledError("it has no choices") from None
    if entries is None:
        raise ValueError("gives: the server ignores prompt_logprobs, which is vLLM's; use gives: samples")
    if not isinstance(entries, list):
        raise GarbledError("prompt_logprobs is no list")
    return entries


def _empty() -> Answer:
    return Answer((), torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0))


def _sparse(rows: dict[int, list[tuple[int, float]]]) -> Answer:
    """Rows of (token, log-weight) per state as one padded `Answer`."""
    positions = tuple(sorted(rows))
    width = max(len(row) for row in rows.values())
    tokens = torch.zeros(len(positions), width, dtype=torch.long)
    logp = torch.full((len(positions), width), -math.inf)
    for index, position in enumerate(positions):
        ids, values = zip(*rows[position], strict=True)
        tokens[index, : len(ids)] = torch.tensor(ids)
        logp[index, : len(ids)] = torch.tensor(values)
    return Answer(positions, tokens, logp)
