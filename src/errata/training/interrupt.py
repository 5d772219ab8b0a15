"""SIGINT and SIGTERM end a run at once where nothing is lost by that, and otherwise as soon as its state can be saved.

A signal raises ``Interrupted`` in the main thread. Inside ``deferred`` it is only noted; the code there checks ``received`` at a
place where it can stop. A second SIGINT raises ``KeyboardInterrupt`` at any time.
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
"""Environment variable with the descriptor of a pipe, which closes when the parent process ends."""
GRACE_S = 60.0
"""Seconds that a run has to save its state after SIGTERM, before it is killed."""


class Interrupted(BaseException):
    """A signal that ends the run. Not an ``Exception``, so that no handler of errors catches it on the way to the command."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status by which shells report a signal: 128 + its number."""
        return 128 + self.number


_received: int | None = None
_deferred = False


def received() -> int | None:
    """The number of the first signal; ``None`` if there was none."""
    return _received


@contextmanager
def handled() -> Iterator[None]:
    """A context in which signals are handled as the module says. Has no effect outside the main thread."""
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
    """A context in which a signal is only noted."""
    with _set(True):
        yield


@contextmanager
def at_once() -> Iterator[None]:
    """A context in which a signal raises ``Interrupted``. One noted before is raised at the beginning."""
    with _set(False):
        if _received is not None:
            raise Interrupted(_received)
        yield


def follow_parent() -> None:
    """Send this process SIGTERM when its parent process has ended, for whatever reason, and kill it ``GRACE_S`` seconds later.

    Has no effect unless the parent has set the environment variable ``PARENT``.
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
