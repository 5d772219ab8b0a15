"""``errata report --serve``: the report of a running training, on this machine alone.

The server listens on the loopback address. A random token is part of the page's address, and requests that name another host
are refused, so neither another user's process nor a web page in the same browser can read the run.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from errata.reports.html import read_page
from errata.reports.rundir import STREAMS, RunDirectory
from errata.reports.runs import PLAN

HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """Serves the page of ``runs`` at :attr:`address`; ``serve_forever()`` runs it, ``shutdown()`` ends it."""

    daemon_threads = True

    def __init__(self, runs: Sequence[str | Path], *, port: int = 0, target: float | None = None) -> None:
        """Begin to listen.

        Args:
            runs: as for :func:`errata.reports.html.write_report`.
            port: 0: any that is free.
            target: as for :func:`errata.reports.html.write_report`.
        Raises:
            ValueError: a directory that is no run, or a port that is in use.
        """
        self._runs, self._target = [Path(run) for run in runs], target
        self._lock, self._seen, self._page = Lock(), "", b""
        self.token = secrets.token_urlsafe(24)
        self.current()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise ValueError(f"port: {port} cannot be used ({error.strerror}); name another or leave it out") from error

    @property
    def address(self) -> str:
        """Where the page is, with its token."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def current(self) -> tuple[str, bytes]:
        """The page with a tag that changes when the runs' files change; it is made anew only then."""
        with self._lock:
            seen = self._state()
            if seen != self._seen or not self._page:
                self._page = read_page(self._runs, target=self._target, live=True)
                self._seen = seen
            return self._seen, self._page

    def _state(self) -> str:
        parts = []
        names = ("config.yaml", "env.json", "code.patch", *(f"{stream}.jsonl" for stream in STREAMS))
        for run in self._runs:
            folders = [run] if not (run / PLAN).is_file() else [run, *sorted(p for p in run.iterdir() if p.is_dir())]
            for folder in folders:
                files = (folder / name for name in (*names, PLAN))
                parts += [f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files if f.is_file()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class Handler(BaseHTTPRequestHandler):
    """Answers GET for the one address, and nothing else."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, 304 if the caller has it, or 404."""
        hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        allowed = secrets.compare_digest(self.path.encode(), f"/{self.server.token}/".encode())
        if not allowed or self.headers.get("Host") not in hosts:
            self._answer(404, b"")
            return
        try:
            tag, page = self.server.current()
        except (OSError, ValueError):  # the run is being replaced at this moment
            self._answer(503, b"")
            return
        if self.headers.get("If-None-Match") == f'"{tag}"':
            self._answer(304, b"", tag)
        else:
            self._answer(200, page, tag)

    def _answer(self, status: int, body: bytes, tag: str = "") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            "X-Content-Type-Options": "nosniff",
            **({"ETag": f'"{tag}"'} if tag else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed for a request."""


def serve(runs: Sequence[str | Path], *, port: int = 0, target: float | None = None) -> None:
    """Serve the page until Ctrl-C, and print its address first."""
    with Server(runs, port=port, target=target) as server:
        running = [run for run in map(Path, runs) if not (run / PLAN).is_file() and not RunDirectory(run).finished]
        print(f"report: {server.address}  (this machine only; {len(running)} running; Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("the report is no longer served")
