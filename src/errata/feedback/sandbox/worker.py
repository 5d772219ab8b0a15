"""Calling a trusted function in another process, for code that may hang in a C library, where only a kill can stop it.

The process is started once and serves many calls. If a call takes too long, a kernel timer kills the process, whatever it is
doing, and the next call starts a new one.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from typing import Any

__all__ = ["Worker", "processors", "serve"]

_MEMORY_BYTES = 4 << 30
"""Limit of the worker's address space."""


def processors() -> int:
    """Number of this machine's processors for this process: all, divided by the training processes on this machine.

    torchrun and accelerate set ``LOCAL_WORLD_SIZE`` to their number.
    """
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Worker:
    """A process that calls one function, one call at a time.

    Args:
        target: ``"package.module:function"``, which takes and returns a JSON object.
        preload: modules to import before the first call, so that their import does not count towards its time limit.
    """

    def __init__(self, target: str, *, preload: Sequence[str] = ()) -> None:
        self._target, self._preload = target, tuple(preload)
        self._process: subprocess.Popen[str] | None = None

    def call(self, argument: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """The function's value. ``TimeoutError`` after ``timeout_s``, ``RuntimeError`` if it raises or its process dies."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([timeout_s, argument]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = process.wait()
            self.close()
            if code == -signal.SIGALRM:
                raise TimeoutError(f"took longer than {timeout_s:g} s")
            raise RuntimeError(f"its process ended with code {code}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        value: dict[str, Any] = answer["value"]
        return value

    def close(self) -> None:
        """End the process; the next call starts a new one."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            f"from errata.feedback.sandbox.worker import serve; serve({self._target!r}, {self._preload!r})",
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        weakref.finalize(self, _end, self._process)
        return self._process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            try:
                pipe.close()
            except BrokenPipeError:
                continue


def serve(target: str, preload: Sequence[str] = ()) -> None:
    """Serve calls from standard input until it is closed. The function's own output is redirected to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    for name in preload:
        importlib.import_module(name)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default action ends the process, even within C code
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    for line in sys.stdin:
        timeout_s, argument = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        try:
            answer = {"value": function(argument)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
