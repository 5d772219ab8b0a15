"""A call with a time limit."""

import threading
import time

import pytest

from errata.feedback.sandbox.time_limit import TooLongError, within


@pytest.mark.parametrize("limit", [None, 5.0])
def test_the_value_and_what_is_raised_come_through(limit):
    assert within(limit, lambda a, b=0: a + b, 1, b=2) == 3
    with pytest.raises(ZeroDivisionError):
        within(limit, lambda: 1 / 0)
    with pytest.raises(SystemExit) as left:
        within(limit, exit, 3)
    assert left.value.code == 3
    with pytest.raises(TimeoutError, match="its own") as own:
        within(limit, raises, TimeoutError("its own"))
    assert not isinstance(own.value, TooLongError)


def raises(error):
    raise error


def test_a_python_loop_is_ended():
    def count():
        while True:
            time.sleep(0.001)

    with pytest.raises(TooLongError, match=r"^took longer than 0\.05 s$"):
        within(0.05, count)
    until = time.monotonic() + 5
    while any(t.name == "count" for t in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
