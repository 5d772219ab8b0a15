"""Requests to a server of the OpenAI protocol, with a rate limit, retries and a budget.

All requests of one batch go through a `Session`: at most ``concurrency`` at a time, evenly spaced to the rate limit, each
retried by the ``openai`` client (429, 5xx, lost connections, time-outs; it honours ``Retry-After``). Malformed responses are
retried here. A server's failure raises nothing: the request has no result, or waits for the server, as
`ServerSettings.on_failure` says.
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
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from errata.experts.remote.settings import ServerSettings

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = [
    "Client",
    "JsonObject",
    "MalformedResponseError",
    "NoAnswerError",
    "RejectedRequestError",
    "Session",
    "run_in_thread",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
JsonObject = dict[str, Any]
"""A request or a response."""

COUNTERS = ("calls", "tokens_in", "tokens_out", "cached", "failed", "refused", "misaligned", "seconds")

_REJECTED = (400, 413, 422)
"""Statuses by which a server says that a request is invalid, so that a retry would fail too."""
_LONGEST_PAUSE_S = 60.0
_LONGEST_RETRY_AFTER_S = 120.0
"""The openai client obeys ``Retry-After`` up to this."""
_CANCEL_TIMEOUT_S = 10.0
"""How long cancelled requests may take to end."""


class MalformedResponseError(Exception):
    """A response that does not follow the protocol; the message says how, without the response's text."""


class NoAnswerError(Exception):
    """A request that failed with all its retries; ``status`` is the HTTP status, ``None`` if there was no response."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status

    @property
    def server_down(self) -> bool:
        """Whether the server seems to be down, so that further requests would only wait for time-outs."""
        return self.status is None or self.status >= 500


class RejectedRequestError(NoAnswerError):
    """A request that the server calls invalid."""


class Client:
    """The state that is shared by all batches: counters, the rate limit, and which warnings were logged."""

    def __init__(self, settings: ServerSettings) -> None:
        _openai()
        self.settings = settings
        self.counters: dict[str, float] = dict.fromkeys(COUNTERS, 0.0)
        self._next_request = 0.0
        self._warned: set[str] = set()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A session for one batch on the running event loop. It reads the key from the environment and stores it nowhere else."""
        settings = self.settings
        async with _openai().AsyncOpenAI(
            base_url=settings.base_url, api_key=self._key() or "none", timeout=settings.timeout_s
        ) as openai_client:
            yield Session(self, openai_client)

    def within_budget(self) -> bool:
        """Whether calls and tokens are below their limits; logs once when they are not."""
        settings, spent = self.settings, self.counters
        calls = settings.max_calls is None or spent["calls"] < settings.max_calls
        tokens = settings.max_tokens is None or spent["tokens_in"] + spent["tokens_out"] < settings.max_tokens
        if not (calls and tokens):
            self.warn_once(
                "budget", f"{settings}: the budget of {'tokens' if calls else 'calls'} is spent; no more requests"
            )
        return calls and tokens

    async def wait_for_rate_limit(self) -> None:
        """Wait until the rate limit allows the next request."""
        if self.settings.requests_per_minute is None:
            return
        now = time.monotonic()
        self._next_request = max(now, self._next_request)
        wait = self._next_request - now
        self._next_request += 60.0 / self.settings.requests_per_minute
        await asyncio.sleep(wait)

    def warn_once(self, topic: str, text: str) -> None:
        """Log a warning unless one of this topic was logged; ``note_success`` allows ``"down"`` again."""
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning("expert %s", text)

    def note_success(self) -> None:
        """Log that the server answers again, if it was reported down."""
        if "down" in self._warned:
            self._warned.remove("down")
            logger.warning("expert %s: answers again", self.settings)

    def redacted(self, text: str) -> str:
        """A server's text, shortened, and with the key masked in case the server repeated it."""
        key = self._key()
        return " ".join((text.replace(key, "***") if key else text).split())[:300]

    def _key(self) -> str:
        return os.environ.get(self.settings.key_env, "")


class Session:
    """The requests of one batch.

    In ``skip`` mode a server that is down should not cost every request its time-outs. After the first request that fails with
    all its retries, the others are tried without retries; after the next failure, no more are made. The next batch starts anew.
    """

    def __init__(self, client: Client, openai_client: AsyncOpenAI) -> None:
        self._client, self._openai_client = client, openai_client
        self._settings, self._counters = client.settings, client.counters
        self._slots = asyncio.Semaphore(self._settings.concurrency)
        self._without_retries = self._given_up = False

    async def request(self, body: JsonObject, read: Callable[[JsonObject], T], estimate: tuple[int, int]) -> T | None:
        """The result of one request; ``None`` if it failed or the budget is spent.

        Args:
            body: the request's fields.
            read: converts the JSON response; raises `MalformedResponseError` for one that is not as expected.
            estimate: tokens in and out, for servers that do not report them.
        """
        async with self._slots:
            for pauses in itertools.count():
                if not self._client.within_budget():
                    self._counters["refused"] += 1
                    return None
                if self._given_up:
                    break
                without_retries = self._without_retries
                retries = 0 if without_retries else self._settings.retries
                try:
                    value = await self.attempt(body, read, estimate, retries=retries)
                except NoAnswerError as error:
                    if not await self._repeats_after(error, without_retries, pauses):
                        break
                else:
                    self._without_retries = False
                    self._client.note_success()
                    return value
        self._counters["failed"] += 1
        return None

    async def _repeats_after(self, error: NoAnswerError, without_retries: bool, pauses: int) -> bool:
        """Whether to repeat the request; returns after the pause if so."""
        if isinstance(error, RejectedRequestError):
            self._client.warn_once("rejected", f"{self._settings}: rejects requests ({error}); they have no answer")
            return False
        pause = self._settings.on_failure == "pause"
        consequence = "waiting for it" if pause else "continuing without its answers"
        self._client.warn_once("down", f"{self._settings}: {error}; {consequence}")
        if pause:
            self._without_retries = True
            await asyncio.sleep(min(2.0**pauses, _LONGEST_PAUSE_S))
        elif error.server_down:
            self._given_up, self._without_retries = self._given_up or without_retries, True
        return pause

    async def attempt(
        self, body: JsonObject, read: Callable[[JsonObject], T], estimate: tuple[int, int], retries: int
    ) -> T:
        """The result of one request with its retries; arguments as of ``request``. Raises `NoAnswerError`."""
        for malformed in itertools.count():
            await self._client.wait_for_rate_limit()
            text = await self._send(body, retries)
            try:
                document = _document(text)
                self._count_tokens(document, estimate)
                return read(document)
            except MalformedResponseError as error:
                if malformed >= retries:
                    reason = self._client.redacted(f"malformed response, {error}: {text}")
                    raise NoAnswerError(reason, 200) from None
            await asyncio.sleep(min(0.5 * 2.0**malformed, 8.0))
        raise AssertionError

    async def _send(self, body: JsonObject, retries: int) -> str:
        """The text of the response. Raises `NoAnswerError`."""
        openai, settings = _openai(), self._settings
        openai_client = self._openai_client.with_options(max_retries=retries)
        resource: Any = openai_client.chat.completions if settings.api == "chat" else openai_client.completions
        named = {name: body[name] for name in ("model", "prompt", "messages") if name in body}
        rest = {name: value for name, value in body.items() if name not in named}
        # The openai client's time-out starts again with each byte, so a slow trickle of bytes needs this total limit.
        limit = (retries + 1) * settings.timeout_s + retries * _LONGEST_RETRY_AFTER_S
        self._counters["calls"] += 1
        try:
            async with asyncio.timeout(limit):
                raw = await resource.with_raw_response.create(**named, extra_body=rest)
            return str(raw.http_response.text)
        except (TimeoutError, openai.APITimeoutError):
            # Still counted as a call, because the provider may charge for it.
            raise NoAnswerError(f"no answer within {settings.timeout_s:g} s") from None
        except openai.APIStatusError as error:
            self._counters["calls"] -= 1
            kind = RejectedRequestError if error.status_code in _REJECTED else NoAnswerError
            reason = self._client.redacted(f"{error.status_code}: {error.response.text}")
            raise kind(reason, error.status_code) from None
        except openai.OpenAIError as error:
            self._counters["calls"] -= 1
            raise NoAnswerError(self._client.redacted(f"{error} {error.__cause__ or ''}")) from None

    def _count_tokens(self, document: JsonObject, estimate: tuple[int, int]) -> None:
        """Add the tokens that the response reports, else the estimate, to the counters."""
        usage = document.get("usage")
        reported = usage if isinstance(usage, dict) else {}
        for counter, name, guess in zip(
            ("tokens_in", "tokens_out"), ("prompt_tokens", "completion_tokens"), estimate, strict=True
        ):
            tokens = reported.get(name)
            self._counters[counter] += tokens if isinstance(tokens, int) and tokens >= 0 else guess

    async def models(self) -> list[str]:
        """Names of the server's models; empty if it does not list them."""
        try:
            return [str(model.id) async for model in self._openai_client.with_options(max_retries=0).models.list()]
        except Exception:  # only used in the message of another error, which must not be lost
            return []


def _document(text: str) -> JsonObject:
    try:
        document = json.loads(text)
    except ValueError:
        raise MalformedResponseError("it is not JSON") from None
    if not isinstance(document, dict):
        raise MalformedResponseError("it is not an object")
    return document


def run_in_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine of ``work`` in an event loop of a new thread, because the caller's may be running (in a notebook).

    If the caller is interrupted, the coroutine is cancelled before this raises.
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
        thread.join(_CANCEL_TIMEOUT_S)


def _openai() -> ModuleType:
    try:
        import openai
    except ImportError:
        raise ImportError("a remote expert needs the openai client: pip install 'errata[server]'") from None
    return openai
