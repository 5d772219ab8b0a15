"""A verifier in a process of its own, which it can exit, kill, flood or hang without harm to the training process.

``ProcessVerifier("file.py:function")`` starts the process and imports the verifier there. Calls are sent to it one at a time,
pickled; verdicts come back as JSON. If the process dies or takes too long, it is killed with all its children, and the next
call starts a new one. This limits accidents; it is no sandbox for hostile code, which :mod:`errata.feedback.sandbox.run` is.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import weakref
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from multiprocessing.connection import Connection, Pipe, wait
from types import SimpleNamespace
from typing import Any

from errata.feedback.custom import as_verdicts, load_verifier, verifier_name
from errata.feedback.sandbox.judge import CallFailedError, describe, listed
from errata.records import Verdict

__all__ = ["ProcessVerifier", "is_own", "serve", "spec_of"]

START_S = 120.0
"""Limit for the start of a process with the verifier's import, in seconds."""
SHOWN_BYTES = 1 << 16
"""What a verifier prints in one call is shown up to this many bytes."""
_ANSWER_BYTES = 1 << 28
_CALLBACKS = ("log_extra", "log_metric")


def is_own(spec: str) -> bool:
    """Whether ``spec`` names one of errata's or TRL's own verifiers, which need no process."""
    return spec.startswith(("errata.", "trl."))


def spec_of(verifier: Any) -> str | None:
    """``"module:function"`` of a function that another process can import; ``None`` for lambdas, closures, objects, ..."""
    module, name = getattr(verifier, "__module__", None), getattr(verifier, "__qualname__", "")
    found = sys.modules.get(module or "")
    if module in (None, "__main__") or not name.isidentifier() or getattr(found, name, None) is not verifier:
        return None
    file = getattr(found, "__file__", None)
    # A module that was loaded from a file by its path cannot be imported by its name.
    return f"{file}:{name}" if file and module and module.startswith("errata_verifier_") else f"{module}:{name}"


class ProcessVerifier:
    """A verifier that is called in another process. As an object it has the verifier's name and signature.

    Args:
        spec: as ``load_verifier`` takes it.
    Raises:
        ValueError: the verifier cannot be imported there, and why.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        hello = self._start()
        self.__name__: str = hello["name"]
        self.limits_own_time: bool = hello["limits_own_time"]
        self.__signature__ = inspect.Signature(
            [
                inspect.Parameter(name, getattr(inspect.Parameter, kind), default=None if optional else inspect._empty)
                for name, kind, optional in hello["parameters"]
            ]
        )

    def verdicts(self, arguments: Mapping[str, Any], *, timeout_s: float | None) -> list[Verdict]:
        """The verdicts of one call with these keyword arguments.

        Raises:
            CallFailedError: it raised, its process ended, or it took longer than ``timeout_s``.
            ValueError: what it returned are no verdicts.
        """
        if self._process is None:
            try:
                self._start()
            except ValueError as error:
                raise CallFailedError(str(error)) from error
        payload = _pickled({**arguments, **{name: None for name in _CALLBACKS if name in arguments}})
        try:
            self._pipe.send_bytes(payload)
            answer = self._answer(timeout_s)
        except OSError:
            answer = None
        except BaseException:  # a signal: the answer would be taken for that of the next call
            self.close()
            raise
        if answer is None:
            raise CallFailedError(self._end())
        if "unusable" in answer:
            raise ValueError(answer["unusable"])
        if "failed" in answer:
            raise CallFailedError(answer["failed"])
        for column, values in answer["extra"]:
            arguments["log_extra"](column, values)
        for metric, value in answer["metrics"]:
            arguments["log_metric"](metric, value)
        return [Verdict(**{**v, "turn_feedback": tuple(v["turn_feedback"])}) for v in answer["verdicts"]]

    def __call__(self, **arguments: Any) -> list[Verdict]:
        """As :meth:`verdicts`, without a limit of time."""
        return self.verdicts(arguments, timeout_s=None)

    def close(self) -> None:
        """Kill the process and its children; the next call starts a new one."""
        if self._process is not None:
            self._stop()
            self._process = None

    # -- inside ----------------------------------------------------------------------------------------------------

    def _start(self) -> dict[str, Any]:
        ours, theirs = Pipe()
        shown, printed = os.pipe()
        # Of its own session: a Ctrl-C in the terminal is for the training process, which then ends this one.
        with open(os.devnull, "rb") as nothing:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps([theirs.fileno(), sys.path, self.spec])],
                stdin=nothing,
                stdout=printed,
                stderr=printed,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        theirs.close()
        os.close(printed)
        self._pipe, self._shown = ours, os.fdopen(shown, "rb", buffering=0)
        os.set_blocking(shown, False)
        self._stop = weakref.finalize(self, _kill, self._process, self._pipe, self._shown)
        hello = self._answer(START_S)
        if hello is None:
            raise ValueError(f"verifier: {self.spec!r} does not import: {self._end()}")
        if "error" in hello:
            self.close()
            raise ValueError(hello["error"])
        return hello

    def _answer(self, timeout_s: float | None) -> dict[str, Any] | None:
        """The process's next answer; ``None`` if it has ended. What it prints meanwhile is shown.

        Raises ``CallFailedError`` after ``timeout_s``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        left = SHOWN_BYTES
        sources: list[Any] = [self._pipe, self._shown]
        while True:
            ready: list[Any] = wait(sources, None if deadline is None else max(deadline - time.monotonic(), 0.0))
            if self._shown in ready:
                text = self._shown.read(1 << 16)
                if not text:
                    sources.remove(self._shown)
                left = _show(text or b"", left)
            if self._pipe in ready:
                try:
                    answer: dict[str, Any] = json.loads(self._pipe.recv_bytes(_ANSWER_BYTES))
                except (EOFError, OSError, ValueError):
                    return None
                while left > 0 and (text := self._shown.read(1 << 16)):
                    left = _show(text, left)
                return answer
            if deadline is not None and time.monotonic() >= deadline:
                self.close()
                raise CallFailedError(f"took longer than {timeout_s:g} s; its process was killed")

    def _end(self) -> str:
        """What became of a process that does not answer any more. Kills what is left of it."""
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        code = process.poll()
        self.close()
        if code is None:
            return "it closed the connection of its process"
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"


def _show(text: bytes, left: int) -> int:
    """Print the first ``left`` bytes of ``text``; how many may follow."""
    if text and left > 0:
        sys.stderr.write(text[:left].decode("utf-8", "replace"))
        if len(text) >= left:
            sys.stderr.write("\n[the verifier prints more, which is not shown]\n")
        sys.stderr.flush()
    return max(left - len(text), 0)


def _kill(process: subprocess.Popen[bytes], pipe: Connection, shown: io.FileIO) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    pipe.close()
    shown.close()


def _pickled(arguments: Mapping[str, Any]) -> bytes:
    """The arguments, TRL's objects as plain ones, so that the other process need not import its library."""
    plain = dict(arguments)
    state = plain.get("trainer_state")
    if is_dataclass(state):
        kept = [f.name for f in fields(state) if f.name not in ("log_history", "stateful_callbacks")]
        plain["trainer_state"] = SimpleNamespace(**{name: getattr(state, name) for name in kept}, log_history=[])
    return pickle.dumps(plain)


# -- the other process --

_PROGRAM = """
import json, sys
connection, sys.path[:], spec = json.loads(sys.argv[1])
from errata.feedback.sandbox.verifier_process import serve
serve(connection, spec)
"""


def serve(connection: int, spec: str) -> None:
    """Import the verifier and answer calls from the pipe ``connection`` until it is closed."""
    if sys.platform == "linux":
        _end_with_parent()
    pipe = Connection(connection)
    try:
        verifier = load_verifier(spec)
        hello = {
            "name": verifier_name(verifier),
            "limits_own_time": bool(getattr(verifier, "limits_own_time", False)),
            "parameters": _parameters(verifier),
        }
    except ValueError as error:
        pipe.send_bytes(json.dumps({"error": str(error)}).encode())
        return
    except BaseException as error:
        pipe.send_bytes(json.dumps({"error": f"verifier: {spec!r} does not import: {describe(error)}"}).encode())
        return
    pipe.send_bytes(json.dumps(hello).encode())
    loop = asyncio.new_event_loop()
    while True:
        try:
            payload = pipe.recv_bytes()
        except EOFError:
            return
        answer = _called(verifier, payload, loop)
        with contextlib.suppress(ValueError):  # a verifier may close it
            sys.stdout.flush()
        pipe.send_bytes(answer)


def _called(verifier: Any, payload: bytes, loop: asyncio.AbstractEventLoop) -> bytes:
    """One call's verdicts, or why there are none, as JSON."""
    extra: list[Any] = []
    metrics: list[Any] = []
    seed = zlib.crc32(payload)
    random.seed(seed)  # what is drawn depends on the call alone, so that a resumed run draws the same
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed)
    try:
        arguments = pickle.loads(payload)
        arguments |= {
            name: lambda key, value, kept=kept: kept.append((key, value))
            for name, kept in (("log_extra", extra), ("log_metric", metrics))
            if name in arguments
        }
        n = len(arguments["completions"])
        value = verifier(**arguments)
        if inspect.isawaitable(value):
            value = loop.run_until_complete(_awaited(value))
        value = listed(value, n)
        try:
            verdicts = [asdict(v) for v in as_verdicts(value, n=n, name=verifier_name(verifier))]
        except ValueError as error:
            return json.dumps({"unusable": str(error)}).encode()
        return json.dumps({"verdicts": verdicts, "extra": extra, "metrics": metrics}, default=_plain).encode()
    except BaseException as error:  # a SystemExit or KeyboardInterrupt too
        return json.dumps({"failed": describe(error)}).encode()


def _plain(value: Any) -> Any:
    """Arrays and their scalars as numbers, other objects as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


async def _awaited(value: Any) -> Any:
    return await value


def _parameters(verifier: Any) -> list[tuple[str, str, bool]]:
    try:
        parameters = inspect.signature(verifier).parameters.values()
    except (TypeError, ValueError):  # written in C
        return [("columns", "VAR_KEYWORD", False)]
    return [(p.name, p.kind.name, p.default is not p.empty) for p in parameters]


def _end_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out, this process is killed and not the training's
