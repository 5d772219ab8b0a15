"""A cache of an expert's answers on disk, by the content of the query."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

__all__ = ["AnswerCache", "fingerprint"]

_LOCK_TIMEOUT_S = 60.0
"""How long to wait for another process that writes to the file."""


def fingerprint(content: Any) -> str:
    """SHA-256 (hex) of ``content`` as JSON with sorted keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerCache:
    """A map from fingerprints to JSON values in one SQLite file.

    Each entry is a transaction of its own with write-ahead logging, so that a killed process loses no entry for which `put`
    returned, and several processes of one machine can share the file. It must be on a local disk; SQLite cannot share files on
    network file systems.

    Args:
        path: the file; its folder is made if missing.
    Raises:
        ValueError: SQLite cannot use ``path``.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # Used from another thread than the one that opens it, but never from two at a time.
            self._db = sqlite3.connect(path, _LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            _use_wal(self._db)
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"cache: {path} cannot be used ({error}); name another file on a local disk") from None

    def get(self, key: str) -> Any:
        """The value stored under a fingerprint; ``None`` if there is none."""
        row = self._db.execute("SELECT answer FROM answers WHERE question = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Store a JSON value under a fingerprint, replacing an earlier one."""
        self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(value)))

    def __len__(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        self._db.close()


def _use_wal(db: sqlite3.Connection) -> None:
    # When several processes open a new file at once, SQLite may report a lock here without waiting for it.
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
