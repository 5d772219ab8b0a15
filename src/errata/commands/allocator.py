"""Whether a CPU process keeps the memory of freed tensors."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> bool:
    """Have this process keep the memory of freed tensors for the next ones, for its whole life; whether it could be told.

    glibc hands every tensor above some 32 MB back to the operating system and asks for it anew, page by page, in every
    step: for a small model with a large vocabulary that takes a tenth to a fifth of the step (docs/performance.md). The peak
    grows by a tenth at most, for what is kept is used again; but a process holds its peak until it ends.

    Nothing is changed where the environment already says how to allocate (``MALLOC_...``, ``GLIBC_TUNABLES``), nor where
    the C library is not glibc. ``errata train`` and ``errata eval`` call this when they compute on a CPU; a program of
    yours may, before it loads the model.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
