"""Work side by side: each core takes a part for itself, all of its steps, instead of all cores sharing every step.

What a core's matrix product has left in its cache is then found there by the arithmetic after it, and nobody waits for the
others between two steps.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

MOST = 16
"""Lanes at most: with more, their Python would be waiting for each other's; they share the cores instead."""


def lanes_on(device: torch.device) -> int:
    """How many are worth having: a GPU's operations fill it by themselves."""
    return min(torch.get_num_threads(), MOST) if device.type == "cpu" else 1


def side_by_side(work: Callable[[int], T], lanes: int) -> list[T]:
    """work(0), ..., work(lanes - 1), without gradient, each in a thread with its share of the cores. What one raises is
    raised."""
    if lanes == 1:
        return [work(0)]

    def alone(lane: int) -> T:
        with torch.no_grad():  # a thread's own state
            return work(lane)

    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads // lanes, 1))  # new threads take it over
    try:
        with ThreadPoolExecutor(lanes) as pool:
            return list(pool.map(alone, range(lanes)))
    finally:
        torch.set_num_threads(threads)
