"""A function in a process of its own: whatever it does, the caller gets an answer in time."""

import os
import time

import pytest

from errata.feedback.sandbox.worker import Worker, processors

MODULE = """
import os, sys, time

def double(argument):
    print("noise")
    return {"twice": 2 * argument["x"], "pid": os.getpid()}

def misbehave(argument):
    if argument["how"] == "raise":
        raise KeyError("gone")
    if argument["how"] == "die":
        os._exit(7)
    if argument["how"] == "c code":
        9 ** 10 ** 9
    if argument["how"] == "memory":
        bytearray(10 ** 11)
    if argument["how"] == "sleep":
        time.sleep(60)
    return {"fine": os.getpid()}
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    (tmp_path / "functions_for_worker.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    made = []

    def make(name):
        made.append(Worker(f"functions_for_worker:{name}"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_one_process_answers_many_calls(worker):
    double = worker("double")
    answers = [double.call({"x": i}, timeout_s=10.0) for i in range(5)]
    assert [a["twice"] for a in answers] == [0, 2, 4, 6, 8]
    assert len({a["pid"] for a in answers}) == 1
    assert answers[0]["pid"] != os.getpid()


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raise", RuntimeError, "KeyError: 'gone'"),
        ("memory", RuntimeError, "MemoryError"),
        ("die", RuntimeError, "its process ended with code 7"),
        ("sleep", TimeoutError, r"took longer than 0\.5 s"),
        ("c code", TimeoutError, r"took longer than 0\.5 s"),
    ],
)
def test_a_call_that_fails_does_not_spoil_the_next(worker, how, error, message):
    misbehave = worker("misbehave")
    before = misbehave.call({"how": "well"}, timeout_s=10.0)["fine"]
    start = time.monotonic()
    with pytest.raises(error, match=message):
        misbehave.call({"how": how}, timeout_s=0.5)
    assert time.monotonic() - start < 5.0
    after = misbehave.call({"how": "well"}, timeout_s=10.0)["fine"]
    assert (after == before) == (how in ("raise", "memory"))


def test_ranks_on_one_machine_share_its_processors(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processors() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert processors() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert processors() == 1


def test_its_process_ends_with_it(worker):
    double = worker("double")
    pid = double.call({"x": 1}, timeout_s=10.0)["pid"]
    double.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
