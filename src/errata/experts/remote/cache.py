"""What was asked is not asked again: an expert's answers on disk, by the content of the question."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

__all__ = ["AnswerCache", "fingerprint"]

_WAIT_S = 60.0


def fingerprint(content: Any) -> str:
    """SHA-256 (hex) of ``content`` as JSON, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerCache:
    """Fingerprint → JSON value, in one SQLite file.

    Each entry is committed by itself and written ahead (WAL), so a killed process loses none that `put` returned for,
    and processes of one machine may share the file. It must lie on a local disk: network file systems cannot share it.

    Raises:
        ValueError: ``path`` is no file that SQLite can write.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # The thread that asks is not the one that made this; only one of them uses it at a time.
            self._db = sqlite3.connect(path, _WAIT_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"cache: {path} cannot be used ({error}); name another file on a local disk") from None

    def get(self, question: str) -> Any:
        """The value stored under a fingerprint; ``None`` where there is none."""
        row = self._db.execute("SELECT answer FROM answers WHERE question = ?", (question,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, question: str, answer: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (question, json.dumps(answer)))

    def __len__(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        self._db.close()
