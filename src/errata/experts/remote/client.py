"""Asking a server that speaks the OpenAI protocol: patience, budget, and the key that nobody sees.

One batch of requests is one `Session`: as many at a time as `ServerSettings.concurrency`, spaced to the rate limit, each
retried by the maintained ``openai`` client (429, 5xx, lost connections, time-outs; ``Retry-After`` is honoured). What comes
back as garbage is asked for again as often. Nothing raises for a server's failure: the request goes without an answer, or
waits for the server, as `ServerSettings.on_failure` says.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from errata.experts.remote.settings import ServerSettings

__all__ = ["Asker", "GarbledError", "NoAnswerError", "Session", "WrongRequestError", "in_own_loop"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

COUNTERS = ("calls", "tokens_in", "tokens_out", "cached", "failed", "refused", "misaligned", "seconds")

_WRONG_REQUEST = (400, 413, 422)
"""Statuses by which a server says that this request is wrong, and would be at any time."""
_LONGEST_PAUSE_S = 60.0
_LONGEST_RETRY_AFTER_S = 120.0
"""The openai client obeys ``Retry-After`` up to this."""
_LAST_WORDS_S = 10.0
"""How long cancelled work may take to end."""


class GarbledError(Exception):
    """An answer that is not what the protocol says; the message says why, the text itself is added where it is shown."""


class NoAnswerError(Exception):
    """A request that went without an answer; asked later, it may be answered."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status

    @property
    def lost(self) -> bool:
        """Whether the server seems to be down, so that asking on would only cost time-outs."""
        return self.status is None or self.status >= 500


class WrongRequestError(NoAnswerError):
    """A request that the server calls wrong."""


class Asker:
    """What outlives a batch: the account, the rate limit, and what the log was told."""

    def __init__(self, settings: ServerSettings) -> None:
        _openai()
        self.settings = settings
        self.counters: dict[str, float] = dict.fromkeys(COUNTERS, 0.0)
        self._next_turn = 0.0
        self._told: set[str] = set()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A client for one batch, on the running loop. The key is read here, from the environment, and kept nowhere else."""
        settings = self.settings
        async with _openai().AsyncOpenAI(
            base_url=settings.base_url, api_key=self._key() or "none", timeout=settings.timeout_s
        ) as client:
            yield Session(self, client)

    def within_budget(self) -> bool:
        settings, spent = self.settings, self.counters
        calls = settings.max_calls is None or spent["calls"] < settings.max_calls
        tokens = settings.max_tokens is None or spent["tokens_in"] + spent["tokens_out"] < settings.max_tokens
        if not (calls and tokens):
            self.tell("budget", f"{settings}: the budget of {'tokens' if calls else 'calls'} is spent; asking no more")
        return calls and tokens

    async def turn(self) -> None:
        """Wait for this request's place under the rate limit."""
        if self.settings.requests_per_minute is None:
            return
        now = time.monotonic()
        self._next_turn = max(now, self._next_turn)
        wait = self._next_turn - now
        self._next_turn += 60.0 / self.settings.requests_per_minute
        await asyncio.sleep(wait)

    def tell(self, matter: str, text: str) -> None:
        """Warn once of a matter; a server that is back may be reported missing again."""
        if matter not in self._told:
            self._told.add(matter)
            logger.warning("expert %s", text)

    def answered(self) -> None:
        if "down" in self._told:
            self._told.remove("down")
            logger.warning("expert %s: answers again", self.settings)

    def readable(self, text: str) -> str:
        """A server's words, short and without the key, should it have echoed it."""
        key = self._key()
        return " ".join((text.replace(key, "***") if key else text).split())[:300]

    def _key(self) -> str:
        return os.environ.get(self.settings.key_env, "")


class Session:
    """One batch's requests.

    In ``skip`` mode a server that is down must not cost every request its time-outs: after the first that failed with
    all its retries the rest of the batch is asked once each, and after one of those has failed not at all. The next
    batch begins anew.
    """

    def __init__(self, asker: Asker, client: Any) -> None:
        self._asker, self._client = asker, client
        self._settings, self._counters = asker.settings, asker.counters
        self._slots = asyncio.Semaphore(self._settings.concurrency)
        self._wary = self._given_up = False

    async def ask(self, body: dict[str, Any], read: Callable[[Any], T], estimate: tuple[int, int]) -> T | None:
        """One request's answer as ``read`` makes it of the JSON document; ``None``: it failed, or nothing is left to spend.

        ``read`` raises `GarbledError` for a document that is not as it should be. ``estimate`` is the tokens in and out, for
        servers that do not say.
        """
        async with self._slots:
            for pauses in itertools.count():
                if not self._asker.within_budget():
                    self._counters["refused"] += 1
                    return None
                if self._given_up:
                    break
                wary = self._wary
                try:
                    value = await self.attempt(body, read, estimate, retries=0 if wary else self._settings.retries)
                except NoAnswerError as trouble:
                    if not await self._again(trouble, wary, pauses):
                        break
                else:
                    self._wary = False
                    self._asker.answered()
                    return value
        self._counters["failed"] += 1
        return None

    async def _again(self, trouble: NoAnswerError, wary: bool, pauses: int) -> bool:
        """Whether to ask once more; if so, after a pause."""
        if isinstance(trouble, WrongRequestError):
            self._asker.tell("refused", f"{self._settings}: refuses requests ({trouble}); they go without an answer")
            return False
        pause = self._settings.on_failure == "pause"
        going_on = "waiting for it" if pause else "going on without its answers"
        self._asker.tell("down", f"{self._settings}: {trouble}; {going_on}")
        if pause:
            self._wary = True
            await asyncio.sleep(min(2.0**pauses, _LONGEST_PAUSE_S))
        elif trouble.lost:
            self._given_up, self._wary = self._given_up or wary, True
        return pause

    async def attempt(
        self, body: dict[str, Any], read: Callable[[Any], T], estimate: tuple[int, int], retries: int
    ) -> T:
        """One request with its retries. Raises `NoAnswerError`."""
        for garbled in itertools.count():
            await self._asker.turn()
            text = await self._send(body, retries)
            try:
                document = _document(text)
                self._account(document, estimate)
                return read(document)
            except GarbledError as error:
                if garbled >= retries:
                    reason = self._asker.readable(f"garbage instead of an answer, {error}: {text}")
                    raise NoAnswerError(reason, 200) from None
            await asyncio.sleep(min(0.5 * 2.0**garbled, 8.0))
        raise AssertionError

    async def _send(self, body: dict[str, Any], retries: int) -> str:
        openai, settings = _openai(), self._settings
        client = self._client.with_options(max_retries=retries)
        resource = client.chat.completions if settings.api == "chat" else client.completions
        named = {name: body[name] for name in ("model", "prompt", "messages") if name in body}
        rest = {name: value for name, value in body.items() if name not in named}
        # The client's own time-out starts anew with each byte; this one ends a server that drips.
        limit = (retries + 1) * settings.timeout_s + retries * _LONGEST_RETRY_AFTER_S
        self._counters["calls"] += 1
        try:
            async with asyncio.timeout(limit):
                raw = await resource.with_raw_response.create(**named, extra_body=rest)
            return str(raw.http_response.text)
        except (TimeoutError, openai.APITimeoutError):
            # Paid for, perhaps: it stays in the account.
            raise NoAnswerError(f"no answer within {settings.timeout_s:g} s") from None
        except openai.APIStatusError as error:
            self._counters["calls"] -= 1
            kind = WrongRequestError if error.status_code in _WRONG_REQUEST else NoAnswerError
            raise kind(self._asker.readable(f"{error.status_code}: {error.response.text}"), error.status_code) from None
        except openai.OpenAIError as error:
            self._counters["calls"] -= 1
            raise NoAnswerError(self._asker.readable(f"{error} {error.__cause__ or ''}")) from None

    def _account(self, document: dict[str, Any], estimate: tuple[int, int]) -> None:
        usage = document.get("usage")
        said = usage if isinstance(usage, dict) else {}
        for counter, name, guess in zip(
            ("tokens_in", "tokens_out"), ("prompt_tokens", "completion_tokens"), estimate, strict=True
        ):
            tokens = said.get(name)
            self._counters[counter] += tokens if isinstance(tokens, int) and tokens >= 0 else guess

    async def models(self) -> list[str]:
        """What the server says it has; empty if it does not say."""
        try:
            return [str(model.id) async for model in self._client.with_options(max_retries=0).models.list()]
        except Exception:  # a list for an error message: whatever prevents it, that message matters more
            return []


def _document(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        raise GarbledError("it is not JSON") from None
    if not isinstance(document, dict):
        raise GarbledError("it is not an object")
    return document


def in_own_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` in an event loop of a thread of its own: the caller's thread may have one running, as in a notebook.

    Interrupted, it cancels the work before it lets go.
    """
    outcome: Future[T] = Future()
    cancel: list[Callable[[], object]] = []

    async def main() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        return await work()

    def run() -> None:
        try:
            outcome.set_result(asyncio.run(main()))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="errata-expert", daemon=True)
    try:
        thread.start()
        return outcome.result()
    finally:
        if not outcome.done():
            for stop in cancel:
                stop()
        thread.join(_LAST_WORDS_S)


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise ImportError("a remote expert needs the openai client: pip install 'errata[server]'") from None
    return openai
