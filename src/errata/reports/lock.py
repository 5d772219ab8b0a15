"""A lock for one writer per directory. It is free again when the process that holds it has ended.

The file ``.lock`` names the holder: process, its start time and its machine. The holder renews the file's time regularly. On
the holder's machine a lock is free once that process has ended. On another machine (a network disk) it is free once it was not
renewed for ``STALE_S`` seconds. If two processes take a free lock at the same moment, ``flock`` decides. Where the file system
has no ``flock``, the process that wrote last has the lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

NAME = ".lock"
RENEW_S = 20.0
STALE_S = 120.0


@dataclass(frozen=True)
class Holder:
    """The process that writes to a directory."""

    pid: int
    started: str
    """When the process started, as the machine counts. A later process with the same number has another value."""
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Lock:
    """A context in which this process holds the lock of a directory.

    Args:
        folder: the directory; created if it is missing.
        setting: the setting that an error names.
    Raises:
        ValueError: another living process holds it.
    """

    def __init__(self, folder: Path, *, setting: str = "output_dir") -> None:
        self._path, self._setting = folder / NAME, setting
        self._me = Holder(os.getpid(), _started(os.getpid()), platform.node(), time.strftime("%Y-%m-%d %H:%M:%S"))
        self._done = threading.Event()

    def __enter__(self) -> Lock:
        if self._path.parent.exists() and not self._path.parent.is_dir():
            raise ValueError(f"{self._setting}: {self._path.parent} is a file; choose another directory")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(self._path) as (file, guarded):
            other = _living(file)
            if other is not None:
                raise ValueError(refusal(self._setting, self._path.parent, other))
            _write(file, asdict(self._me))
        if not guarded:
            time.sleep(0.5)
            if (winner := _read(self._path)) != self._me:
                raise ValueError(refusal(self._setting, self._path.parent, winner))
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        with contextlib.suppress(OSError), _opened(self._path) as (file, _):
            if _parsed(file) == self._me:
                _write(file, None)

    def _renew(self) -> None:
        while not self._done.wait(RENEW_S):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def holder(folder: Path) -> Holder | None:
    """The living process that holds the lock of ``folder``; ``None`` if there is none."""
    path = folder / NAME
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return _living(file)


def refusal(setting: str, folder: Path, other: Holder | None) -> str:
    return (
        f"{setting}: {folder} is being written by {other or 'another process'}; "
        "wait until it ends, stop it, or choose another directory"
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, bool]]:
    """The open file of the lock, and whether ``flock`` keeps other processes out meanwhile."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(descriptor, "r+b") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            guarded = True
        except (ImportError, OSError):
            guarded = False
        yield file, guarded


def _living(file: Any) -> Holder | None:
    found = _parsed(file)
    if found is None:
        return None
    if found.host == platform.node():
        return found if _alive(found) else None
    return found if time.time() - os.fstat(file.fileno()).st_mtime < STALE_S else None


def _alive(found: Holder) -> bool:
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(found.pid) == found.started


def _started(pid: int) -> str:
    """Boot and start time of a process: ``""`` where the system does not tell them, ``"ended"`` for a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return f"{boot} {fields[19]}" if fields[0] not in "ZX" else "ended"


def _parsed(file: Any) -> Holder | None:
    """The holder in the file. ``None`` if it is empty or damaged: a living holder has written it completely."""
    file.seek(0)
    try:
        found = Holder(**json.loads(file.read()))
        return found if isinstance(found.pid, int) and found.pid > 0 else None
    except (ValueError, TypeError):
        return None


def _read(path: Path) -> Holder | None:
    with path.open("rb") as file:
        return _parsed(file)


def _write(file: Any, value: dict[str, Any] | None) -> None:
    file.seek(0)
    file.truncate()
    if value is not None:
        file.write(json.dumps(value).encode())
    file.flush()
    os.fsync(file.fileno())
