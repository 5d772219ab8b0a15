"""Servers of environments on this machine, for the tests of other packages' worlds."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORLDS = Path(__file__).parent / "worlds"


@contextmanager
def serving(script: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address and the process of a server that a script of ``worlds/`` starts on a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(WORLDS / script), str(port)])
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()
