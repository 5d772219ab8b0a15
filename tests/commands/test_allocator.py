"""A freed tensor's memory, told to stay: seen in what the operating system counts as resident."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks to glibc")

PROGRAM = """
import os, torch
from errata.commands.allocator import keep_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

told = {call}
before = resident()
a = torch.ones(64 << 20)
del a
print(told, round((resident() - before) / 256))
"""


def after_freeing_256_mib(call: str, **environment: str) -> list[str]:
    """What the call returned, and how many times 256 MiB are resident after a tensor of that size came and went."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_freed_tensor_stays():
    assert after_freeing_256_mib("keep_memory()") == ["True", "1"]


def test_without_it_it_goes():
    assert after_freeing_256_mib("None") == ["None", "0"]


def test_the_environment_has_the_first_word():
    assert after_freeing_256_mib("keep_memory()", MALLOC_ARENA_MAX="2") == ["False", "0"]
