"""Calling a verifier so that its failures leave rollouts without a verdict but never stop the run."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
import time
import traceback
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from errata.feedback.custom import Verifier, as_verdicts, verifier_name
from errata.feedback.sandbox.time_limit import TooLongError, within
from errata.records import Verdict

__all__ = ["judge"]

_SAID = 2000
"""Characters kept of what an error says."""
_RETRY_LIMITS = 4
"""After a batch fails, its rollouts are tried one by one for at most this many time limits, in case the verifier always hangs."""


def judge(
    verifier: Verifier,
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Any] | None = None,
    columns: Mapping[str, Any],
    timeout_s: float | None,
) -> list[Verdict]:
    """The verifier's verdicts on a batch; ``Verdict(None, kind="error", info={"error": ...})`` for rollouts it fails on.

    If the call on the whole batch raises or takes longer than ``timeout_s``, each rollout is tried alone, so that only those
    that cause a failure are lost (and those left over when the retries have taken four times the limit).

    Args:
        verifier: called as TRL calls a reward function. With a true attribute ``limits_own_time`` it is called without a limit.
        prompts: one per rollout.
        completions: one per rollout.
        completion_ids: one per rollout, or ``None`` where they are not known.
        columns: TRL's other keyword arguments: the rows' columns (lists, one value per completion) and, as TRL passes them,
            ``trainer_state``, ``log_extra``, ``log_metric`` and ``environments``.
        timeout_s: limit in seconds; ``None`` calls the verifier in this thread without a limit, for one that needs the main
            thread.
    Raises:
        ValueError: ``prompts`` or ``completion_ids`` that are not one per completion, or an invalid return value (see
            :func:`~errata.feedback.custom.as_verdicts`): errors of the program, not of a rollout.

    A verifier that hangs in Python code is stopped by an exception in its thread. One that hangs in C code cannot be stopped;
    its daemon thread is left running. A verifier in a process of its own (``verifier_process``) is killed instead.
    """
    name, n = verifier_name(verifier), len(completions)
    arguments = {"prompts": prompts, "completions": completions, **columns}
    if completion_ids is not None:
        arguments["completion_ids"] = completion_ids
    for argument in ("prompts", "completion_ids"):
        if len(arguments.get(argument, completions)) != n:
            raise ValueError(f"{argument}: {len(arguments[argument])} for {n} completions; give one each")
    if getattr(verifier, "limits_own_time", False):
        timeout_s = None
    completed: list[_Call] = []

    def attempt(which: Sequence[int]) -> list[Verdict]:
        call = _Call(which, arguments)
        if isinstance(verifier, _Elsewhere):
            verdicts = verifier.verdicts(call.arguments, timeout_s=timeout_s)
        else:
            verdicts = as_verdicts(_value(timeout_s, verifier, call.arguments), n=len(which), name=name)
        completed.append(call)
        return verdicts

    try:
        verdicts = attempt(range(n))
    except CallFailedError as failure:
        if n == 1:
            return [_failed(name, str(failure))]
        verdicts, deadline = [], math.inf if timeout_s is None else time.monotonic() + _RETRY_LIMITS * timeout_s
        for index in range(n):
            if time.monotonic() > deadline:
                verdicts.append(_failed(name, "not judged: other rollouts of the batch used up the verifier's time"))
                continue
            try:
                verdicts += attempt([index])
            except CallFailedError as single:
                verdicts.append(_failed(name, str(single)))
    _forward_logs(completed, arguments, n)
    return verdicts


class CallFailedError(Exception):
    """The verifier raised, took too long, or ended its process; the message says what happened."""


@runtime_checkable
class _Elsewhere(Protocol):
    """A verifier that limits its own time and makes its own verdicts, as ``ProcessVerifier`` does."""

    def verdicts(self, arguments: Mapping[str, Any], *, timeout_s: float | None) -> list[Verdict]: ...


def listed(value: Any, n: int) -> Any:
    """What an iterator yields, one more than ``n`` at most: an endless one must not fill the memory."""
    return list(islice(value, n + 1)) if isinstance(value, Iterator) else value


def _failed(name: str, error: str) -> Verdict:
    return Verdict(None, kind="error", info={"error": error, "verifier": name})


class _Call:
    """One call on some of the batch's rollouts: its arguments, and what it logs through TRL's callbacks.

    Logs are collected here first, because those of a call that fails must not be forwarded.
    """

    def __init__(self, which: Sequence[int], arguments: Mapping[str, Any]) -> None:
        n = len(arguments["completions"])
        self.which = which
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}
        self.arguments = {
            key: [value[i] for i in which] if isinstance(value, list | tuple) and len(value) == n else value
            for key, value in arguments.items()
        }
        if arguments.get("log_extra") is not None:
            self.arguments["log_extra"] = lambda column, values: self.extra.setdefault(column, []).extend(values)
        if arguments.get("log_metric") is not None:
            self.arguments["log_metric"] = lambda name, value: self.metrics.setdefault(name, []).append(value)


def _forward_logs(calls: Sequence[_Call], arguments: Mapping[str, Any], n: int) -> None:
    """Forward extra columns, with ``None`` for failed calls, and the mean over calls of each metric."""
    for column in dict.fromkeys(c for call in calls for c in call.extra):
        logged = {i: value for call in calls for i, value in zip(call.which, call.extra.get(column, ()), strict=False)}
        arguments["log_extra"](column, [logged.get(i) for i in range(n)])
    for metric in dict.fromkeys(m for call in calls for m in call.metrics):
        values = [value for call in calls for value in call.metrics.get(metric, ())]
        arguments["log_metric"](metric, math.fsum(values) / len(values))


def _value(timeout_s: float | None, verifier: Verifier, arguments: dict[str, Any]) -> Any:
    """The verifier's return value, awaited. Raises ``CallFailedError`` if it raises or takes longer than ``timeout_s``."""

    def call() -> Any:
        return listed(verifier(**arguments), len(arguments["completions"]))

    call.__name__ = f"verifier {verifier_name(verifier)}"  # its thread is named so
    start = time.monotonic()
    try:
        value = within(timeout_s, call)
    except TooLongError as error:
        raise CallFailedError(str(error)) from None
    except (Exception, SystemExit) as error:
        raise CallFailedError(describe(error)) from error
    if not inspect.isawaitable(value):
        return value
    left = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - start))
    future = asyncio.run_coroutine_threadsafe(_awaited(value), _event_loop())
    try:
        return future.result(left)
    except Exception as failure:
        if future.done() and not future.cancelled():
            raise CallFailedError(describe(failure)) from failure
        future.cancel()
        _abandon_blocked_loop()
        raise CallFailedError(f"took longer than {timeout_s:g} s") from None


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    # One loop for all calls: a client that a verifier keeps between batches works only in the loop it was made in.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="verifiers' event loop", daemon=True).start()
    return loop


def _abandon_blocked_loop() -> None:
    """Use a new loop for the next call if this one is blocked, because a coroutine that blocks its loop cannot be cancelled."""
    try:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), _event_loop()).result(1.0)
    except TimeoutError:
        _event_loop.cache_clear()


def describe(error: BaseException) -> str:
    """What was raised, what it says, and the file and line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    try:
        said = str(error)
    except Exception:
        said = "(it cannot say what)"
    text = f"{type(error).__name__}: {said[:_SAID]}{place}"
    if "main thread" in text:
        text += "; this verifier needs the main thread: set its time limit to none"
    return text
