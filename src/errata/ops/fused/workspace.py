"""The memory a score op works in: how many tokens a tile has, what is kept of its logits and where, and who works on what."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .threads import lanes_on

TILE_BYTES = {"cpu": 312 << 20}
"""Size of the kept logits by device; elsewhere 2 GiB, since a GPU's products want thousands of tokens."""
BLOCK_ELEMENTS = {"cpu": 280_000}
"""Logits of a block: 1.1 MB of a core's cache on a CPU; elsewhere enough to keep a GPU busy without doubling the tile's
memory."""
_TILE_BYTES, _BLOCK_ELEMENTS = 2 << 30, 1 << 26


def plan(n: int, first: int, most: int) -> list[int]:
    """Heights of the fewest tiles for n tokens, the first of at most ``first`` and the others of at most ``most``, all of
    them about equally full.

    Multiples of 16, so that rows begin with a cache line; but not of 128, where it can be had: rows a power of two apart
    fall into the same few sets of a cache. Products and arithmetic take up to a tenth longer otherwise.
    """
    if n <= first:
        return [n]
    first, most = (limit // 16 * 16 or limit for limit in (first, most))
    others = -(-(n - first) // most)
    even_share = -(-n * first // ((first + others * most) * 16)) * 16
    choices = [(top, -(-(n - top) // (others * 16)) * 16) for top in range(min(even_share, first), first + 1, 16)]
    top, height = next((c for c in choices if c[0] % 128 and c[1] % 128), choices[0])
    aside = 0 if height % 128 or height + 16 > most else 16  # an odd tile out would cost more than it saves
    heights = [top]
    while (left := n - sum(heights)) > 0:
        heights.append(min(height + (aside if len(heights) % 2 else -aside), most, left))
    return heights


class Workspace:
    """Buffers that every tile uses again, each block of them (length, n) and contiguous."""

    def __init__(
        self,
        n_tokens: int,
        vocabulary: int,
        columns: int,
        scratch: int,
        keep: bool,
        blank: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """``columns`` of (V, n), for the whole vocabulary if ``keep``, and ``scratch`` for a block. ``blank``: (V, H)
        memory that column 0 of the first tile may be lodged in."""
        self.vocabulary, self.dtype, self.device, self.keep = vocabulary, dtype, device, keep
        self.home: Tensor | None = None
        """Where column 0 is lodged; the tile lets go of it."""
        elements = BLOCK_ELEMENTS.get(device.type, _BLOCK_ELEMENTS)
        if keep:
            room = TILE_BYTES.get(device.type, _TILE_BYTES) * 8 // (vocabulary * torch.finfo(dtype).bits)
            first = most = max(room // columns, 1)
            if blank is not None:
                lodging = min(blank.shape[1], room // (columns - 1) if columns > 1 else n_tokens)
                if lodging >= min(most, n_tokens):
                    first, self.home = lodging, blank
        else:
            first = most = max(512, elements // vocabulary)
        self.heights = plan(n_tokens, first, most)
        self._block_of = {n: min(-(-max(elements // n, 1) // 64) * 64, vocabulary) for n in self.heights}
        lanes = lanes_on(device)
        stored = [n * columns for n in self.heights]
        if self.home is not None:
            stored[0] -= self.heights[0]
        self._kept = self._buffer(max(stored) * vocabulary if keep else 0)
        self._first_scratch = 0 if keep else columns
        largest = max(n * block for n, block in self._block_of.items())
        self._scratch = self._buffer(lanes, self._first_scratch + scratch, largest)

    def _buffer(self, *shape: int) -> Tensor:
        # A CPU's memory is touched in order, at once: left to the products, that takes several times as long.
        make = torch.zeros if self.device.type == "cpu" else torch.empty
        return make(*shape, dtype=self.dtype, device=self.device)

    def begin(self, n: int) -> int:
        """A tile of n tokens; how many blocks it has."""
        self._n, self._block = n, self._block_of[n]
        self._starts = range(0, self.vocabulary, self._block)
        self.lanes = min(len(self._scratch), len(self._starts))
        return len(self._starts)

    def blocks(self, lane: int | None = None) -> Iterator[tuple[int, int, int]]:
        """(number, first token of the vocabulary, one past its last), of all blocks or a lane's."""
        count = len(self._starts)
        mine = range(count) if lane is None else range(lane * count // self.lanes, (lane + 1) * count // self.lanes)
        for b in mine:
            yield b, self._starts[b], min(self._starts[b] + self._block, self.vocabulary)

    def kept(self, i: int, start: int, stop: int, lane: int = 0) -> Tensor:
        """A block of column i; without ``keep``, the same memory again and again."""
        if not self.keep:
            return self._view(self._scratch[lane, i], stop - start)
        if i == 0 and self.home is not None:
            return self._view(self.home[start:stop].view(-1), stop - start)
        place = ((i - (self.home is not None)) * self.vocabulary + start) * self._n
        return self._view(self._kept[place:], stop - start)

    def scratch(self, i: int, length: int, lane: int) -> Tensor:
        """A block to be used at once, a lane's own."""
        return self._view(self._scratch[lane, self._first_scratch + i], length)

    def _view(self, flat: Tensor, length: int) -> Tensor:
        return flat[: length * self._n].view(length, self._n)
