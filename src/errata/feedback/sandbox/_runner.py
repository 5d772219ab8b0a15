"""The script that isolates and runs one program for :mod:`errata.feedback.sandbox.run`.

``python -I -S _runner.py KEY=VALUE ...`` isolates itself from the machine, runs one program and writes its outcome to a pipe. It
is started for every program, so it imports as little as possible, and only from the standard library. It has three processes:

    outer       enters new namespaces (user, mount, pid, network, ...) and waits, so that it can pass on a kill
    supervisor  is process 1 of the namespaces: makes a root of read-only system folders and a small scratch folder, and watches
                time and memory; when it ends, the kernel kills all processes that are left
    program     an unprivileged user with resource limits, running a new Python interpreter

With ``mode`` "inside" (under bubblewrap) the namespaces exist already. With "landlock" there are none, and the program is
isolated by ``_landlock.py``; with "local" it is not isolated.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # `signal` adds only enums to it, which are slow to import
import ctypes
import os
import resource
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

NOBODY = 65534
SCRATCH = "/box"
_NAMESPACED = ("namespaces", "inside")
_NEW_ROOT = "/proc"  # a mount point that exists everywhere and hides no file that is needed
_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # user mount pid net ipc uts
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_PDEATHSIG, _DUMPABLE, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 36, 38
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155}.get(os.uname().machine, 41)

# Without ``site`` a program starts five times faster and has no installed packages. ``exit`` and ``quit``, which ``site``
# defines, are defined here.
_START = """
def code():
    import _sitebuiltins, builtins, sys
    builtins.exit, builtins.quit = (_sitebuiltins.Quitter(name, "Ctrl-D") for name in ("exit", "quit"))
    def show(kind, error, trace):
        import traceback
        while trace and trace.tb_frame.f_code.co_filename == "<string>":
            trace = trace.tb_next
        traceback.print_exception(kind, error, trace)
    sys.excepthook, sys.argv = show, [__file__]
    with open(__file__, "rb") as file:
        return compile(file.read(), __file__, "exec", dont_inherit=True)
__file__ = "solution.py"
code = code()
exec(code)
"""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    result = _libc.mount(*texts, ctypes.c_ulong(flags), None if data is None else data.encode())
    _check(result, f"mount {target}")


def _read_only(target: str) -> None:
    """Make ``target`` read-only with all mounts below it, which a plain remount would leave writable."""
    attributes = (ctypes.c_uint64 * 4)(_RDONLY | _NOSUID | _NODEV, 0, 0, 0)
    result = _libc.syscall(_MOUNT_SETATTR, -100, target.encode(), 0x8000, ctypes.byref(attributes), 32)
    _check(result, f"make {target} read-only (needs Linux 5.12 or bubblewrap)")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _try(action: Callable[..., None], *arguments: object) -> None:
    try:
        action(*arguments)
    except OSError:  # contextlib.suppress would be an import
        return


# -- the outer process --


def enter_namespaces() -> None:
    """Return in the supervisor, process 1 of new namespaces. The outer process waits for it and exits."""
    root = os.geteuid() == 0
    outer = os.getpid()
    ready = os.pipe()
    helper = os.fork() if root else 0
    if root and helper == 0:
        # The program will run as a second user, because limits do not apply to root. Only a process outside can map it.
        try:
            os.read(ready[0], 1)
            for kind in ("uid", "gid"):
                _write(f"/proc/{outer}/{kind}_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
        except OSError:
            os._exit(1)
        os._exit(0)
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(_NAMESPACES), "unshare")
    if root:
        os.write(ready[1], b"x")
        if os.waitpid(helper, 0)[1] != 0:
            raise OSError("the users of the new namespace could not be mapped")
    else:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {uid} 1\n")
        _write("/proc/self/gid_map", f"{NOBODY} {gid} 1\n")
    _try(_write, "/proc/sys/user/max_user_namespaces", "0")  # none inside this one, where possible
    for fd in ready:
        os.close(fd)
    supervisor = os.fork()
    if supervisor == 0:
        _prctl(_PDEATHSIG, signal.SIGKILL)
        return
    signal.signal(signal.SIGTERM, lambda *_: os.kill(supervisor, signal.SIGKILL))
    os.waitpid(supervisor, 0)
    os._exit(0)


# -- the supervisor --


def build_root(paths: list[str], scratch_bytes: int) -> None:
    """Change to a root with only ``paths`` (read-only), ``/box`` (writable) and a minimal ``/dev``."""
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", _NEW_ROOT, "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m")
    for path in paths:
        target = _NEW_ROOT + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        _bind(path, target)
        _read_only(target)
    for name in ("null", "zero", "full", "random", "urandom"):
        if os.path.exists(f"/dev/{name}"):
            os.makedirs(f"{_NEW_ROOT}/dev", exist_ok=True)
            _bind(f"/dev/{name}", f"{_NEW_ROOT}/dev/{name}")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{_NEW_ROOT}/dev/{name}")
    os.symlink("/proc/self/fd", f"{_NEW_ROOT}/dev/fd")
    for name in ("tmp", "dev/shm"):
        os.symlink(SCRATCH, f"{_NEW_ROOT}/{name}")
    os.mkdir(_NEW_ROOT + SCRATCH)
    _mount("tmpfs", _NEW_ROOT + SCRATCH, "tmpfs", _NOSUID | _NODEV, f"mode=777,size={scratch_bytes},nr_inodes=4096")
    os.mkdir(_NEW_ROOT + "/proc")
    # Some containers forbid it; programs rarely need it.
    _try(_mount, "proc", _NEW_ROOT + "/proc", "proc", _NOSUID | _NODEV | _NOEXEC | _RDONLY)
    _mount(None, _NEW_ROOT, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    os.chdir(_NEW_ROOT)
    _check(_libc.syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", 2), "detach the old root")
    os.chdir("/")


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    _mount(source, target, None, _BIND | _REC)


def supervise(settings: dict[str, str], scratch: str) -> dict[str, float]:
    """Run the program until it ends, its time is over or its processes take too much memory; the outcome by name."""
    start = time.monotonic()
    if sys.platform == "linux":
        _prctl(_DUMPABLE, 0)  # the program may have the same user: it must not attach a debugger to this process
    program = os.fork()
    if program == 0:
        become_program(settings, scratch)
    for fd in (0, 1, 2):
        os.close(fd)
    outcome: dict[str, float] = {}
    memory_bytes = int(settings["memory_bytes"])
    deadline, next_look, pause = start + float(settings["timeout_s"]), start + 0.1, 0.0005
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == program:
            outcome["returncode"] = os.waitstatus_to_exitcode(status)
            break
        now = time.monotonic()
        if now > deadline:
            outcome["timeout"] = 1
        elif now > next_look:
            next_look = now + 0.1
            if settings["mode"] in _NAMESPACED and _memory_of_all() > memory_bytes:
                outcome["memory"] = 1
            elif settings["mode"] != "namespaces":  # there the file system itself limits size and number
                most = int(settings["scratch_bytes"])
                if _bytes_in(scratch, most) > most:
                    outcome["output"] = 1
        if outcome:
            os.kill(program, signal.SIGKILL)
            os.waitpid(program, 0)
            outcome["returncode"] = -signal.SIGKILL
            break
        if pid == 0:
            time.sleep(pause)
            pause = min(pause * 1.3, 0.02)
    outcome["seconds"] = time.monotonic() - start
    return outcome


def _memory_of_all() -> int:
    """Memory of all other processes of this namespace in bytes, shared pages counted once; 0 if unknown.

    Files without a name (memfd) and SysV segments take memory also while no process maps them.
    """
    private = shared = 0
    held: dict[tuple[int, int], int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not name.isdigit() or name == "1":
            continue
        try:
            with open(f"/proc/{name}/smaps_rollup") as file:
                sizes = dict(line.split()[:2] for line in file if ":" in line.split()[0])
            mapped = int(sizes.get("Pss_Shmem:", 0)) << 10
            shared += mapped
            private += (int(sizes.get("Pss:", 0)) + int(sizes.get("SwapPss:", 0)) << 10) - mapped
            for fd in os.listdir(f"/proc/{name}/fd"):
                if os.readlink(f"/proc/{name}/fd/{fd}").startswith("/memfd:"):
                    state = os.stat(f"/proc/{name}/fd/{fd}")
                    held[state.st_dev, state.st_ino] = state.st_blocks * 512
        except (OSError, ValueError, IndexError):
            continue
    return private + max(shared, sum(held.values()) + _sysv_bytes())


def _sysv_bytes() -> int:
    """Memory of this namespace's SysV segments, in bytes."""
    try:
        with open("/proc/sysvipc/shm") as file:
            head, *rows = [line.split() for line in file]
        return sum(int(row[head.index("rss")]) + int(row[head.index("swap")]) for row in rows)
    except (OSError, ValueError, IndexError):
        return 0


_DEEPEST = 200
"""Folders within folders; deeper ones count as too much, because their paths could not be written any more."""


def _bytes_in(folder: str, limit: int) -> int:
    """Size of the folder's files and folders in bytes, each counted as at least 16 KiB, so that their number is limited too.

    Stops at the first sum above ``limit``.
    """
    total, left = 0, [(folder, 0)]
    while left and total <= limit:
        place, depth = left.pop()
        if depth > _DEEPEST:
            return limit + 1
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    total += max(entry.stat(follow_symlinks=False).st_size, 1 << 14)
                    if entry.is_dir(follow_symlinks=False):
                        left.append((entry.path, depth + 1))
        except OSError:
            continue
    return total


def _remove(folder: str) -> None:
    """Remove a folder with all that is in it, also where it is nested too deeply for a path or for recursion."""
    number = 0
    while entries := [entry.path for entry in os.scandir(folder)]:
        moved = number
        for path in entries:
            if os.path.islink(path) or not os.path.isdir(path):
                _try(os.unlink, path)
                continue
            _try(os.chmod, path, 0o700)
            for name in os.listdir(path):  # its contents go up beside it
                inner, number = f"{path}/{name}", number + 1
                if not os.path.islink(inner):
                    _try(os.chmod, inner, 0o700)
                _try(os.rename, inner, f"{folder}/.moved-{number}")
            _try(os.rmdir, path)
        if number == moved and len(os.listdir(folder)) == len(entries):
            return  # nothing could be removed
    os.rmdir(folder)


# -- the program --


def become_program(settings: dict[str, str], scratch: str) -> NoReturn:
    try:
        if settings["mode"] not in _NAMESPACED:
            os.setsid()
        limits = {
            "AS": int(settings["memory_bytes"]),
            "CPU": int(float(settings["timeout_s"])) + 2,
            "FSIZE": int(settings["file_bytes"]),
            "CORE": 0,
            "NOFILE": 128,
        }
        if settings["mode"] in _NAMESPACED:  # elsewhere the user's other processes would count
            limits["NPROC"] = int(settings["processes"])
        if sys.platform == "linux":
            _prctl(_NO_NEW_PRIVS, 1)
        if settings["mode"] == "namespaces" and os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        for name, value in limits.items():
            if sys.platform == "linux" or name != "AS":  # elsewhere address space cannot be limited
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        os.chdir(scratch)
        if settings["mode"] == "landlock":
            sys.path.append(os.path.dirname(os.path.abspath(__file__)))
            from _landlock import isolate  # type: ignore[import-not-found]

            isolate(settings["paths"].split(":"), scratch)
        environment = {"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8"}
        os.closerange(3, 256)
        os.execve(settings["python"], ["python", "-I", "-S", "-B", "-X", "utf8", "-c", _START], environment)
    except BaseException as error:
        os.write(2, f"the sandbox could not start the program: {error}\n".encode())
    finally:
        os._exit(127)


def _kill_descendants() -> None:
    """Kill the processes left by a program without namespaces; orphans become children of this process, their subreaper."""
    me = str(os.getpid())
    for _ in range(100):
        children = []
        for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
            try:
                with open(f"/proc/{name}/stat") as file:
                    if name.isdigit() and file.read().rpartition(")")[2].split()[1] == me:
                        children.append(int(name))
            except OSError:
                continue
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main() -> None:
    settings: dict[str, str] = dict(argument.split("=", 1) for argument in sys.argv[1:])
    scratch = SCRATCH
    try:
        if sys.platform == "linux":
            _prctl(_PDEATHSIG, signal.SIGKILL)
        if settings["mode"] == "namespaces":
            enter_namespaces()
            build_root(settings["paths"].split(":"), int(settings["scratch_bytes"]))
        elif settings["mode"] not in _NAMESPACED:
            import tempfile

            scratch = tempfile.mkdtemp(prefix="errata-")
            if sys.platform == "linux":
                _prctl(_SUBREAPER, 1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # the kernel ignores these for process 1 when sent from inside
        if settings["mode"] not in _NAMESPACED:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with open(int(settings["source_fd"]), "rb") as source, open(f"{scratch}/solution.py", "wb") as file:
            file.write(source.read())
        report = "\n".join(f"{key}={value}" for key, value in supervise(settings, scratch).items())
    except OSError as error:
        report = f"setup={error}"
    finally:
        if settings["mode"] not in _NAMESPACED:
            _kill_descendants()
            _try(_remove, scratch)
    os.write(int(settings["status_fd"]), report.encode())
    os._exit(0)


if __name__ == "__main__":
    main()
