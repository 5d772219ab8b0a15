"""Isolation without namespaces, for containers that forbid them: Landlock for files, seccomp for system calls.

``_runner.py`` applies it in the program's process, before it executes the program. Landlock (Linux 6.2 or newer, see landlock(7))
restricts file access to the readable paths and the scratch folder. Seccomp (see seccomp(2)) rejects system calls for sockets, new
processes, signals to other processes, shared memory, changes of owner or mode, and kernel features that programs do not need.
Threads are allowed.
"""

from __future__ import annotations

import ctypes
import os
import struct

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REFER = 1, 2, 4, 8, 1 << 13
_ALL = (1 << 15) - 1  # all rights of Landlock's third version
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446

_SECCOMP, _FILTER = 22, 2
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x00010000
_LOAD, _EQUAL, _GREATER, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF on 32-bit words
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the argument's low word

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# System calls by number on x86_64 and aarch64; -1 where there is none.
_REJECTED = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "fork": (57, -1),
    "vfork": (58, -1),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "perf_event_open": (298, 241),
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "personality": (135, 92),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_TGKILL, _PRLIMIT, _CLONE, _CLONE3 = (234, 131), (302, 261), (56, 220), 435

_libc = ctypes.CDLL(None, use_errno=True)


def isolate(readable: list[str], scratch: str) -> None:
    """Isolate this process and the programs it executes, permanently. Raises ``OSError`` if the kernel cannot.

    Args:
        readable: files and folders that may be read and executed.
        scratch: the folder that may be written to.
    """
    _drop_capabilities()
    _landlock(readable, scratch)
    _seccomp()


def _done(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _drop_capabilities() -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    _done(_libc.capset(header, bytes(24)), "capset")


def _landlock(readable: list[str], scratch: str) -> None:
    if _done(_libc.syscall(_CREATE_RULESET, None, 0, 1), "landlock") < 3:
        raise OSError("landlock: needs Linux 6.2 or newer")
    rules = _done(_libc.syscall(_CREATE_RULESET, struct.pack("Q", _ALL), 8, 0), "landlock_create_ruleset")
    allowed = [(path, _EXECUTE | _READ_FILE | _READ_DIR) for path in readable]
    allowed += [(f"/dev/{name}", _READ_FILE | _WRITE_FILE) for name in ("null", "zero", "full", "random", "urandom")]
    allowed.append((scratch, _ALL & ~_REFER))
    for path, rights in allowed:
        if os.path.exists(path):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _allow(rules, place, rights if os.path.isdir(path) else rights & ~_READ_DIR)
            os.close(place)
    _allow(rules, 0, _READ_FILE)  # a program may open /dev/stdin
    _done(_libc.syscall(_RESTRICT_SELF, rules, 0), "landlock_restrict_self")
    os.close(rules)


def _allow(rules: int, place: int, rights: int) -> None:
    _done(_libc.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", rights, place), 0), "landlock_add_rule")


def _seccomp() -> None:
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(f"seccomp: no table of system calls for {machine}")
    program = b"".join(struct.pack("HBBI", *line) for line in _filter(*_ARCHITECTURES[machine], pid=os.getpid()))
    memory = ctypes.create_string_buffer(program)
    prog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(memory))
    _done(_libc.prctl(_SECCOMP, _FILTER, prog, 0, 0), "seccomp")


def _filter(architecture: int, column: int, *, pid: int) -> list[tuple[int, int, int, int]]:
    """The BPF program: (operation, jump if true, jump if false, value); a jump is the number of lines skipped."""
    allow, reject, missing = (
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
    )
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_GREATER, 0, 1, 0x40000000),  # x86_64's second table of numbers
        reject,
    ]
    for numbers in _REJECTED.values():
        if numbers[column] >= 0:
            lines += [(_EQUAL, 0, 1, numbers[column]), reject]
    lines += [(_EQUAL, 0, 1, _CLONE3), missing]  # BPF cannot read its flags; libraries then use clone
    lines += [(_EQUAL, 0, 4, _CLONE[column]), (_LOAD, 0, 0, _ARGUMENT), (_SET, 0, 1, _CLONE_THREAD), allow, reject]
    for numbers, own in ((_TGKILL, pid), (_PRLIMIT, 0)):  # only on itself
        lines += [(_EQUAL, 0, 4, numbers[column]), (_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 0, 1, own), allow, reject]
    return [*lines, allow]
