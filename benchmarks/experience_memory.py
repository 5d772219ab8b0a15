"""The cost of a full experience: memory, checkpoint size, and the time to save it, load it and add to it.

    python benchmarks/experience_memory.py

Each line is a process of its own, with 50,000 problems in ledger and buffer and 4 texts each in the buffer.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time

from errata.experience import Experience, PassRateLedger, SuccessBuffer

PROBLEMS, TEXTS = 50_000, 4


def rss() -> float:
    """Peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def fill(characters: int, letter: str) -> str:
    before = rss()
    ledger, buffer = PassRateLedger(), SuccessBuffer()
    experience = Experience(ledger, buffer)
    body = letter * (characters - 12)
    for problem in range(PROBLEMS):
        name = f"some/task/train/{problem}"
        ledger.update(name, 4, 8, problem)
        for k in range(TEXTS):
            buffer.add(name, f"{problem:08d} {k:02d} {body}", 1.0, problem)
    held = rss() - before
    counts = buffer.metrics()

    start = time.perf_counter()
    saved = json.dumps(experience.state_dict())
    saving = time.perf_counter() - start

    start = time.perf_counter()
    again = Experience(PassRateLedger(), SuccessBuffer())
    again.load_state_dict(json.loads(saved))
    loading = time.perf_counter() - start
    assert json.dumps(again.state_dict()) == saved

    start = time.perf_counter()
    for k in range(32):  # a step of problems never seen before, each removing another one
        buffer.add(f"new/{k}", f"{k} {body}", 1.0, PROBLEMS)
    adding = time.perf_counter() - start
    return (
        f"{characters:>10,} {'ASCII' if letter.isascii() else 'CJK':>6} {counts['problems']:>9,} {counts['texts']:>8,} "
        f"{held:>7.0f} MB {len(saved) / 1e6:>8.0f} MB {saving:>6.1f} s {loading:>6.1f} s {adding:>6.2f} s"
    )


if __name__ == "__main__":
    print("characters script  problems    texts     memory        JSON     save     load  32 adds")
    for characters, letter in [(100, "x"), (500, "x"), (1_000, "x"), (500, "是"), (4_000, "x")]:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.apply(fill, (characters, letter)), flush=True)
