"""CPU threads that each process a part of the vocabulary on their own.

PyTorch would split every single operation over all cores. Here each thread runs all operations of its own blocks, so the
result of a matrix product is still in that core's cache when the arithmetic after it reads it, and no thread waits for
the others between two operations.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

MAX_THREADS = 16
"""With more threads than this, Python's lock would hold them up; each thread gets several cores instead."""


def threads_for(device: torch.device) -> int:
    """Number of threads to use: one on a GPU, whose operations fill it by themselves."""
    return min(torch.get_num_threads(), MAX_THREADS) if device.type == "cpu" else 1


def run_in_threads(work: Callable[[int], T], threads: int) -> list[T]:
    """[work(0), ..., work(threads - 1)], without gradient, each in its own thread with an equal share of the cores.

    An exception in one of them is raised here.
    """
    if threads == 1:
        return [work(0)]

    def without_gradient(thread: int) -> T:
        with torch.no_grad():  # the gradient mode is a thread's own state
            return work(thread)

    cores = torch.get_num_threads()
    torch.set_num_threads(max(cores // threads, 1))  # new threads inherit it
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(without_gradient, range(threads)))
    finally:
        torch.set_num_threads(cores)
