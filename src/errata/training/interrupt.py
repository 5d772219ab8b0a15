"""SIGINT and SIGTERM: they end a run at once where that loses nothing, and else as soon as its state can be saved.

A signal raises ``Interrupted`` in the main thread, unless the work under way is ``deferred``: then it is only noted, and whoever
deferred it asks ``received`` when the work is done. A second SIGINT raises ``KeyboardInterrupt`` whatever is under way.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PARENT = "ERRATA_PARENT_PIPE"
"""Environment variable with the descriptor of a pipe that closes when the process which started this one ends."""
GRACE_S = 60.0
"""Seconds a run has to save once the process that started it is gone."""


class Interrupted(BaseException):
    """A signal asked the run to end. No ``Exception``: nothing between here and the command may take it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that says which signal it was, as shells do."""
        return 128 + self.number


_received: int | None = None
_deferred = False


def received() -> int | None:
    """The signal that asked the run to end; ``None``: go on."""
    return _received


@contextmanager
def handled() -> Iterator[None]:
    """Here signals are handled as the module says. Without effect outside the main thread."""
    global _received, _deferred
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received, _deferred = None, False
    before = {number: signal.signal(number, _note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received, _deferred = None, False


@contextmanager
def deferred() -> Iterator[None]:
    """Here a signal is noted and nothing else."""
    with _set(True):
        yield


@contextmanager
def at_once() -> Iterator[None]:
    """Here a signal raises ``Interrupted``; one that was noted before does so at the beginning."""
    with _set(False):
        if _received is not None:
            raise Interrupted(_received)
        yield


def follow_parent() -> None:
    """End this process as by SIGTERM when the one that started it has ended, however that came; kill it a minute later.

    Only where the parent left word in the environment variable ``PARENT``.
    """
    text = os.environ.pop(PARENT, None)
    if text is None or not text.isdigit():
        return
    threading.Thread(target=_wait_for_end, args=(int(text),), daemon=True).start()


def _wait_for_end(descriptor: int) -> None:
    try:
        while os.read(descriptor, 1):
            pass
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _set(value: bool) -> Iterator[None]:
    global _deferred
    before, _deferred = _deferred, value
    try:
        yield
    finally:
        _deferred = before


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    again = _received is not None
    _received = _received or number
    if again and number == signal.SIGINT:
        raise KeyboardInterrupt
    if not _deferred and not again:
        raise Interrupted(number)
