"""The cache returns what was stored, to the last bit, also when several processes share the file."""

import json
import math
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errata.experts.remote.cache import AnswerCache, fingerprint

NUMBERS = st.floats(allow_nan=False)
ROWS = st.lists(st.lists(st.integers() | NUMBERS | st.text(max_size=8) | st.booleans(), max_size=4), max_size=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    cache = AnswerCache(tmp_path_factory.mktemp("cache") / "deep" / "answers.sqlite")
    yield cache
    cache.close()


@given(ROWS)
def test_an_answer_comes_back_to_the_last_bit(cache, value):
    """A resumed run's weights are the same only if each log-probability is."""
    cache.put("question", value)
    assert cache.get("question") == value


@given(NUMBERS)
def test_a_fingerprint_tells_neighbouring_numbers_apart(number):
    near = math.nextafter(number, 0.0) if number else 5e-324
    assert fingerprint([number]) != fingerprint([near])
    assert fingerprint([number]) == fingerprint([number])


@given(st.dictionaries(st.text(max_size=4), st.integers(), min_size=2, max_size=4))
def test_a_fingerprint_does_not_depend_on_the_keys_order(content):
    assert fingerprint(content) == fingerprint(dict(reversed(content.items())))


def test_the_latest_answer_counts_once(tmp_path):
    cache = AnswerCache(tmp_path / "answers.sqlite")
    for value in (1, 2):
        cache.put("question", value)
    assert (cache.get("question"), len(cache)) == (2, 1)


WRITE = """
import sys
from errata.experts.remote.cache import AnswerCache
cache, mine = AnswerCache(sys.argv[1]), sys.argv[2]
for i in range(40):
    cache.put(f"{mine}-{i}", [mine, i])
    cache.put("everyone's", mine)
"""


def test_processes_write_at_once_and_none_loses_an_answer(tmp_path):
    path = tmp_path / "answers.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(path), name]) for name in "abc"]
    assert [w.wait(60) for w in writers] == [0, 0, 0]
    cache = AnswerCache(path)
    assert len(cache) == 121
    assert all(cache.get(f"{name}-{i}") == [name, i] for name in "abc" for i in range(40))


def test_the_file_holds_the_answer_and_a_hash_of_the_query(tmp_path):
    cache = AnswerCache(tmp_path / "answers.sqlite")
    cache.put(fingerprint({"prompt": "a private prompt"}), ["an answer"])
    cache.close()
    data = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert json.dumps(["an answer"]).encode() in data
    assert b"private" not in data


def test_a_lock_that_sqlite_does_not_wait_for_is_waited_for(tmp_path, monkeypatch):
    """As happens, once in about 1,600 times, when four processes open a new file at the same moment."""
    attempts = []

    class Locked(sqlite3.Connection):
        def execute(self, statement, *parameters):
            if "journal_mode" in statement:
                attempts.append(statement)
                if len(attempts) < 3:
                    raise sqlite3.OperationalError("database is locked")
            return super().execute(statement, *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, factory=Locked, **kwargs))
    cache = AnswerCache(tmp_path / "answers.sqlite")
    cache.put("key", 1)
    assert (cache.get("key"), len(attempts)) == (1, 3)
