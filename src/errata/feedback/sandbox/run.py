"""Running untrusted Python programs isolated from the machine.

A program has no network, no home directory, no environment variables, read-only system folders and a scratch folder of its own.
Its CPU time, wall time, memory, processes, file sizes and output are limited, and all processes it started are killed with it.
On Linux the isolation is by bubblewrap if it is installed (Debian package ``bubblewrap``, 0.8 or newer), else by user namespaces
(``_runner.py``), else, as in most containers, by Landlock and seccomp (``_landlock.py``). If none of them works, no program is
run, unless the caller passes ``unsafe_local=True``, which applies the limits only.
"""

from __future__ import annotations

import functools
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

__all__ = ["SandboxResult", "Status", "isolation", "run_python"]

Status = Literal["ok", "error", "timeout", "memory", "output", "refused"]

OUTPUT_BYTES = 8 << 20
"""Limit of standard output and error together; the program is killed above it."""
SCRATCH_BYTES = 64 << 20
"""Size of the scratch folder."""
FILE_BYTES = 16 << 20
"""Limit of one file."""
PROCESSES = 16
"""Limit of processes and threads."""

_RUNNER = str(Path(__file__).with_name("_runner.py"))
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache")
_INSTALL = "install bubblewrap (Debian: apt-get install bubblewrap), allow user namespaces or Landlock, or set unsafe_local: true"


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """The outcome of a program."""

    status: Status
    """``ok`` (exit code 0), ``error`` (another exit code or a signal), ``timeout``, ``memory``, ``output`` (too much output or
    too large a scratch folder) or ``refused`` (not run, because it cannot be isolated here; ``stderr`` says why)."""
    stdout: str
    stderr: str
    """Both as UTF-8, other bytes replaced."""
    returncode: int | None
    """The exit code, or minus the signal that ended it; ``None`` if it was not run or was killed from outside."""
    seconds: float
    """Wall time of the program."""


def run_python(
    source: str, *, stdin: str = "", timeout_s: float = 10.0, memory_mb: float = 512, unsafe_local: bool = False
) -> SandboxResult:
    """Run ``source`` as a script in this Python version, with the standard library only.

    Args:
        source: the program's text.
        stdin: its standard input.
        timeout_s: limit of the wall time, in seconds.
        memory_mb: limit of the address space of each of its processes, and of the memory of all together, in MiB.
        unsafe_local: run the program without isolation if this machine offers none.
    Raises:
        ValueError: a limit that is not positive.
    """
    if timeout_s <= 0 or memory_mb <= 0:
        raise ValueError(f"timeout_s and memory_mb must be positive, not {timeout_s:g} and {memory_mb:g}")
    how, why_not = _isolation()
    if not how and not unsafe_local:
        return SandboxResult("refused", "", f"programs cannot be isolated here ({why_not}); {_INSTALL}", None, 0.0)
    return _run(how or "local", source, stdin, timeout_s, memory_mb)


def isolation() -> str:
    """The method of isolation on this machine: ``"bubblewrap"``, ``"namespaces"`` or ``"landlock"``; ``""`` if there is none."""
    return _isolation()[0]


@functools.cache
def _isolation() -> tuple[str, str]:
    """The first method that works, and else why each does not. Tested once in a process."""
    reasons = []
    for how in _methods():
        result = _run(how, "print('ready')", "", 10.0, 512)
        if (result.status, result.stdout) == ("ok", "ready\n"):
            return how, ""
        reasons.append(f"{how}: {result.stderr.strip().splitlines()[-1] if result.stderr.strip() else result.status}")
    return "", "; ".join(reasons) or f"no method for {sys.platform}"


def _methods() -> list[str]:
    if sys.platform != "linux":
        return []
    # The kernel's limit of processes does not apply to root. `_runner.py` runs the program as another user, bubblewrap cannot.
    return [*(["bubblewrap"] if os.geteuid() != 0 and _bubblewrap() else []), "namespaces", "landlock"]


@functools.cache
def _bubblewrap() -> str | None:
    """Path of a bubblewrap that is new enough."""
    path = shutil.which("bwrap")
    if path is None:
        return None
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    numbers = re.findall(r"\d+", version)
    return path if tuple(map(int, numbers[:2])) >= (0, 8) else None


@functools.cache
def _paths() -> list[str]:
    """The paths that a program may read: the system's folders, and the interpreter's if it is elsewhere."""
    python = os.path.realpath(sys.executable)
    wanted = [*_SYSTEM, os.path.realpath(sys.base_prefix), python]
    paths: list[str] = []
    for path in wanted:
        if os.path.lexists(path) and not any(path.startswith(f"{p}/") or path == p for p in paths):
            paths.append(path)
    return paths


def _command(how: str, settings: dict[str, Any]) -> list[str]:
    python = os.path.realpath(sys.executable)
    arguments = [f"{key}={value}" for key, value in settings.items()]
    if how != "bubblewrap":
        return [python, "-I", "-S", _RUNNER, *arguments]
    command = [_bubblewrap() or "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    command += ["--new-session", "--as-pid-1", "--clearenv", "--cap-drop", "ALL", "--uid", "65534", "--gid", "65534"]
    for path in _paths():
        command += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", str(SCRATCH_BYTES), "--tmpfs", "/box"]
    command += ["--symlink", "/box", "/tmp", "--ro-bind", _RUNNER, "/runner.py", "--chdir", "/box"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return [*command, "--", python, "-I", "-S", "/runner.py", *arguments]


def _run(how: str, source: str, stdin: str, timeout_s: float, memory_mb: float) -> SandboxResult:
    status_read, status_write = os.pipe()
    with _file(source) as program, _file(stdin) as given, open(status_read, "rb", buffering=0) as status:
        settings = {
            "mode": "inside" if how == "bubblewrap" else how,
            "python": os.path.realpath(sys.executable),
            "paths": ":".join(_paths()),
            "source_fd": program.fileno(),
            "status_fd": status_write,
            "timeout_s": timeout_s,
            "memory_bytes": int(memory_mb * (1 << 20)),
            "scratch_bytes": SCRATCH_BYTES,
            "file_bytes": FILE_BYTES,
            "processes": PROCESSES,
        }
        start = time.monotonic()
        try:
            process = subprocess.Popen(
                _command(how, settings),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(program.fileno(), status_write),
                env={},
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(status_write)
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            # The supervisor enforces the limit itself; the extra seconds are for a machine too busy to run it in time.
            texts, ended = _read([process.stdout, process.stderr, status], deadline=start + timeout_s + 5.0)
            if ended != "closed":
                _kill(process)
    stdout, stderr, report = texts
    return _result(ended, stdout, stderr, report, time.monotonic() - start)


def _file(text: str) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115
    os.fchmod(file.fileno(), 0o444)  # the program may open /dev/stdin, as another user
    file.write(text.encode("utf-8", "replace"))
    file.seek(0)
    return file


def _read(pipes: list[IO[bytes]], *, deadline: float) -> tuple[list[bytes], str]:
    """The pipes' contents, and why reading ended: ``"closed"``, ``"output"`` (too much) or ``"deadline"``."""
    texts = [bytearray() for _ in pipes]
    with selectors.DefaultSelector() as selector:
        for index, pipe in enumerate(pipes):
            selector.register(pipe, selectors.EVENT_READ, index)
        ended = "closed"
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                ended = "deadline"
                break
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, 1 << 16)
                texts[key.data] += chunk
                if not chunk:
                    selector.unregister(key.fileobj)
            if sum(map(len, texts)) > OUTPUT_BYTES:
                ended = "output"
                break
    return [bytes(text[:OUTPUT_BYTES]) for text in texts], ended


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # the outer process kills the supervisor and waits for it, so that no zombie process is left
    with suppress(subprocess.TimeoutExpired):
        process.wait(2.0)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _result(ended: str, stdout: bytes, stderr: bytes, report: bytes, seconds: float) -> SandboxResult:
    out, err = stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")
    outcome = dict(line.split("=", 1) for line in report.decode("utf-8", "replace").splitlines())
    code = int(outcome["returncode"]) if "returncode" in outcome else None
    status: Status
    if "setup" in outcome:
        return SandboxResult("refused", out, outcome["setup"], None, seconds)
    if ended == "output" or outcome.get("output"):
        status = "output"
    elif ended == "deadline" or outcome.get("timeout") or code == -signal.SIGXCPU:
        status = "timeout"
    elif not outcome:
        return SandboxResult("refused", out, err or "the sandbox ended without a report", None, seconds)
    elif outcome.get("memory") or err.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        status = "memory"
    else:
        status = "ok" if code == 0 else "error"
    return SandboxResult(status, out, err, code, float(outcome.get("seconds", seconds)))
