"""How fast small programs are graded, and which resources grading many of them leaves in use.

    python benchmarks/sandbox.py            # 2,000 programs, 2 at a time

Each program reads a line and prints one; of every four one is wrong and one raises. What is counted before and after is this
process's and its children's; the scratch folders are those of the machine. Other work on the machine slows this down as much
as it takes: the processor time of a program says what two idle cores would do.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from errata.feedback.code import CodeVerifier
from errata.feedback.sandbox import isolation

BODIES = ("print(sum(numbers))", "print(sum(numbers) + 1)", "print(numbers[99])", "print(sum(sorted(numbers)))")
"""Right, wrong, raising, right."""
EXPECTED = {1.0: 2, 0.0: 2}
"""Of every four."""


def programs(n: int) -> list[str]:
    """``n`` completions, no two the same."""
    start = "```python\n# {}\nnumbers = list(map(int, input().split()))\n{}\n```"
    return [start.format(i, BODIES[i % len(BODIES)]) for i in range(n)]


def held() -> dict[str, int]:
    """The numbers that a leak would raise."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    parents = [p.read_text().rpartition(")")[2].split()[1] for p in Path("/proc").glob("[0-9]*/stat") if p.exists()]
    return {
        "file descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "child processes": parents.count(str(os.getpid())),
        "scratch folders": len(list(Path(tempfile.gettempdir()).glob("errata-*"))),
        "resident memory, MB": int(status.split("VmRSS:")[1].split()[0]) >> 10,
    }


def used() -> float:
    """Seconds of processor time of this process and of all processes it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2, help="programs at a time")
    args = parser.parse_args()
    verifier = CodeVerifier(workers=args.workers, timeout_s=10.0, memory_mb=512)
    tests = [json.dumps([{"input": "1 2 3\n", "output": "6"}])]
    verifier(completions=programs(20), tests=tests * 20)  # creates what is created once, before anything is counted

    before, start, busy = held(), time.perf_counter(), used()
    verdicts = verifier(completions=programs(args.programs), tests=tests * args.programs)
    seconds, busy, after = time.perf_counter() - start, used() - busy, held()

    scores = Counter(v.score for v in verdicts)
    whole = args.programs - args.programs % len(BODIES)
    assert sum(scores.values()) == args.programs
    assert args.programs != whole or scores == {s: n * whole // len(BODIES) for s, n in EXPECTED.items()}, scores
    print(
        f"{args.programs} programs, {args.workers} at a time on {len(os.sched_getaffinity(0))} cores, by {isolation()}"
    )
    print(f"{args.programs / seconds:.1f} programs a second ({seconds:.0f} s)")
    print(
        f"{1000 * busy / args.programs:.0f} ms of processor time a program; other work: {os.getloadavg()[0]:.1f} load average"
    )
    for name, count in before.items():
        print(f"{name:>20}: {count} before, {after[name]} after")


if __name__ == "__main__":
    main()
