"""The memory that tiles share: how many tokens a tile has, and where its logits are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .threads import threads_for

TILE_BYTES = {"cpu": 312 << 20}
"""Size of the kept logits by device; elsewhere 2 GiB, because a GPU's products want thousands of tokens."""
BLOCK_ELEMENTS = {"cpu": 280_000}
"""Logits of a block: 1.1 MB of a core's cache on a CPU; elsewhere enough to keep a GPU busy without doubling the tile's
memory."""
_TILE_BYTES, _BLOCK_ELEMENTS = 2 << 30, 1 << 26


def plan(n: int, first: int, most: int) -> list[int]:
    """Heights (in tokens) of the fewest tiles for n tokens, all about equally full.

    The first has at most ``first`` tokens, the others at most ``most``. Heights are multiples of 16, so that rows begin
    with a cache line, but where possible not of 128: rows a power of two apart share the same few sets of a cache, and
    products and arithmetic then take up to a tenth longer.
    """
    if n <= first:
        return [n]
    first, most = (limit // 16 * 16 or limit for limit in (first, most))
    others = -(-(n - first) // most)
    even_share = -(-n * first // ((first + others * most) * 16)) * 16
    choices = [(top, -(-(n - top) // (others * 16)) * 16) for top in range(min(even_share, first), first + 1, 16)]
    top, height = next((c for c in choices if c[0] % 128 and c[1] % 128), choices[0])
    shift = 0 if height % 128 or height + 16 > most else 16  # one more tile would cost more than the shift saves
    heights = [top]
    while (left := n - sum(heights)) > 0:
        heights.append(min(height + (shift if len(heights) % 2 else -shift), most, left))
    return heights


@dataclass(frozen=True)
class Layout:
    """How n tokens are divided into tiles. Column i of a tile is one (V, height) array, such as a model's logits."""

    vocabulary: int
    columns: int
    scratch: int
    """Blocks of scratch memory per thread."""
    keep: bool
    """Whether the columns hold the whole vocabulary. If not, only the block in work exists."""
    aliases_dhead: bool
    """Whether column 0 of the first tile is stored in dhead."""
    heights: tuple[int, ...]
    """Tokens of each tile."""

    @classmethod
    def of(
        cls,
        n: int,
        vocabulary: int,
        *,
        columns: int,
        scratch: int,
        keep: bool,
        dhead_width: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Layout:
        """The layout with the fewest tiles.

        Args:
            n: number of tokens.
            dhead_width: H, if dhead (V, H) holds no gradient yet and may hold column 0 of the first tile.
        """
        first = most = max(512, _block_elements(device) // vocabulary)
        aliases = False
        if keep:
            room = rows_of_logits(vocabulary, dtype, device)
            first = most = max(room // columns, 1)
            if dhead_width is not None:
                with_dhead = min(dhead_width, room // (columns - 1) if columns > 1 else n)
                if with_dhead >= min(most, n):
                    first, aliases = with_dhead, True
        return cls(vocabulary, columns, scratch, keep, aliases, tuple(plan(n, first, most)))

    @property
    def width(self) -> int:
        """Vectors of V elements that the largest tile keeps outside dhead."""
        if not self.keep:
            return 0
        first, *others = self.heights
        return max(first * (self.columns - self.aliases_dhead), *(n * self.columns for n in others), 0)


def rows_of_logits(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Vectors of V elements that a tile may keep, as ``TILE_BYTES`` says."""
    return TILE_BYTES.get(device.type, _TILE_BYTES) * 8 // (vocabulary * torch.finfo(dtype).bits)


class Workspace:
    """Buffers that every tile uses again. Each block of them is (length, height) and contiguous."""

    def __init__(self, layout: Layout, dhead: Tensor | None, dtype: torch.dtype, device: torch.device) -> None:
        """``dhead``: (V, H), read and written only if ``layout.aliases_dhead``."""
        self.layout, self.dtype, self.device = layout, dtype, device
        self.aliased_dhead = dhead if layout.aliases_dhead else None
        """Where column 0 is stored during the first tile. ``release_dhead`` ends that."""
        elements = _block_elements(device)
        self._block_of = {n: min(-(-max(elements // n, 1) // 64) * 64, layout.vocabulary) for n in layout.heights}
        self._kept = self._buffer(layout.width * layout.vocabulary)
        self._first_scratch = 0 if layout.keep else layout.columns
        largest = max(n * block for n, block in self._block_of.items())
        self._scratch = self._buffer(threads_for(device), self._first_scratch + layout.scratch, largest)

    def _buffer(self, *shape: int) -> Tensor:
        # Zeros touch a CPU's memory at once and in order. Left to the products, that takes several times as long.
        make = torch.zeros if self.device.type == "cpu" else torch.empty
        return make(*shape, dtype=self.dtype, device=self.device)

    def begin(self, n: int) -> int:
        """Start a tile of n tokens. Returns its number of blocks."""
        self._n, self._block = n, self._block_of[n]
        self._starts = range(0, self.layout.vocabulary, self._block)
        self.threads = min(len(self._scratch), len(self._starts))
        return len(self._starts)

    def blocks(self, thread: int | None = None) -> Iterator[tuple[int, int, int]]:
        """(number, first vocabulary index, one past the last) of the blocks of a thread, or of all."""
        count = len(self._starts)
        own = range(count)
        if thread is not None:
            own = range(thread * count // self.threads, (thread + 1) * count // self.threads)
        for b in own:
            yield b, self._starts[b], min(self._starts[b] + self._block, self.layout.vocabulary)

    def kept(self, i: int, start: int, stop: int, thread: int = 0) -> Tensor:
        """A block of column i. Without ``keep`` it is the same memory for every block of a thread."""
        if not self.layout.keep:
            return self._view(self._scratch[thread, i], stop - start)
        if i == 0 and self.aliased_dhead is not None:
            return self._view(self.aliased_dhead[start:stop].view(-1), stop - start)
        place = ((i - (self.aliased_dhead is not None)) * self.layout.vocabulary + start) * self._n
        return self._view(self._kept[place:], stop - start)

    def scratch(self, i: int, length: int, thread: int) -> Tensor:
        """A block of a thread's own scratch memory, valid until the thread's next block."""
        return self._view(self._scratch[thread, self._first_scratch + i], length)

    def release_dhead(self) -> None:
        """From here on column 0 is stored in the workspace, as the other columns are."""
        self.aliased_dhead = None

    def _view(self, flat: Tensor, length: int) -> Tensor:
        return flat[: length * self._n].view(length, self._n)


def _block_elements(device: torch.device) -> int:
    return BLOCK_ELEMENTS.get(device.type, _BLOCK_ELEMENTS)
