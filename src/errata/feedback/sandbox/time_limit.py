"""A call of a user's function that may hang."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TooLongError(TimeoutError):
    """The call took longer than its limit."""


class _StopCall(SystemExit):
    """Raised inside a call that takes too long; threads end silently on a ``SystemExit``."""


def within(timeout_s: float | None, function: Callable[..., T], *args: object, **kwargs: object) -> T:
    """The function's value. Raises what it raises, and ``TooLongError`` after ``timeout_s`` seconds.

    A ``BaseException`` other than ``SystemExit`` becomes a ``RuntimeError``.

    With a limit the call runs in a thread of its own. One that hangs in Python code is ended, because its thread would compete
    with the training for the interpreter lock; one that hangs in C code is left in its thread.
    """
    if timeout_s is None:
        return function(*args, **kwargs)
    outcome: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function(*args, **kwargs))
        except _StopCall:
            return  # nobody waits for it any more
        except (Exception, SystemExit) as error:
            raised.append(error)
        except BaseException as error:  # one that would end the process, as from a key, is the function's own here
            raised.append(RuntimeError(f"raised {type(error).__name__}: {error}"))

    name = getattr(function, "__name__", type(function).__name__)
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome and not raised:
        if thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_StopCall))
        raise TooLongError(f"took longer than {timeout_s:g} s")
    if raised:
        raise raised[0]
    return outcome[0]
