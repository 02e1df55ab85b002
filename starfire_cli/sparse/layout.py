"""The memory layout of a feature map while the sparse loops work on it.

One plane a channel, row after row, with room for zeros above and below the image and at the end of each row: a row's
zeros are also what stands left of the next row. A map's zeros are never written, so they stay zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT = 4  # bytes
LINE = 16  # floats of a cache line
LARGEST = (1 << 31) - 1  # bytes that the int32 offsets of the loops reach


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of all maps of H x W pixels.

    Args:
        height: of the image in a plane.
        width: likewise.
        above: rows of zeros before and after it.
        beside: zeros there must be at least between one row and the next.
        lanes: floats that are computed together.
    """

    height: int
    width: int
    above: int
    beside: int
    lanes: int

    @property
    def row(self) -> int:
        """The stride of rows in floats."""
        return _whole(self.width + self.beside, self.lanes)

    @property
    def plane(self) -> int:
        """The stride of channels in floats: an odd number of cache lines, lest channels collide in a cache.

        Vectors that hold several rows may end behind the last one; what they write there is within the plane.
        """
        rows = self.above + max(self.height + self.above, _whole(self.height, max(1, LINE // self.row)))
        lines = -(-rows * self.row // LINE)
        return LINE * (lines + 1 - lines % 2)

    @property
    def start(self) -> int:
        """The offset of the first channel's first pixel, in floats: where a cache line begins, as in all channels."""
        return _whole(max(1, self.beside) + self.above * self.row, LINE)

    @property
    def vectors(self) -> int:
        """The number of vectors that cover a row's pixels."""
        return -(-self.width // self.lanes)

    def floats(self, channels: int) -> int:
        """The size of `channels` planes in floats, with what vectors may read before the first and behind the last."""
        return _whole(self.start + channels * self.plane + 4 * self.lanes, LINE)

    def reachable(self, channels: int) -> bool:
        """Whether int32 offsets in bytes can address all of a map from any of its pixels."""
        return FLOAT * self.floats(channels) <= LARGEST

    def view(self, memory: Tensor, offset: int, channels: int) -> Tensor:
        """The pixels of each image as (B, C, H, W), where `memory` is (B, floats) and the map begins at `offset`."""
        return memory.as_strided(
            (len(memory), channels, self.height, self.width),
            (memory.stride(0), self.plane, self.row, 1),
            memory.storage_offset() + offset + self.start,
        )

    def mask(self) -> Tensor:
        """int32, (H * row,) and as many more as the last vector may cover; all bits set where a pixel is."""
        found = torch.zeros(_whole(self.height * self.row, LINE), dtype=torch.int32)
        found[: self.height * self.row].view(self.height, self.row)[:, : self.width] = -1
        return found

    def rows_in_vector(self, lanes: int) -> int:
        """The number of whole rows in a vector of `lanes` floats; 1 where a row takes a vector or more."""
        return lanes // self.row if lanes % self.row == 0 and self.row < lanes else 1


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Rectangles of one shape that a map's rows are cut into.

    Args:
        rows: of one tile.
        vectors: of one tile, side by side.
        places: (row, vector) where each begins.
    """

    rows: int
    vectors: int
    places: tuple[tuple[int, int], ...]


def cut(height: int, vectors: int, *, most: int, most_rows: int, most_vectors: int) -> list[Tiles]:
    """Tiles that cover `height` rows of `vectors` vectors once, with as little work as possible.

    Args:
        height: rows.
        vectors: in each.
        most: registers that hold sums.
        most_rows: of a tile.
        most_vectors: likewise.
    """
    best: tuple[float, list[Tiles]] | None = None
    for rows in range(1, min(most_rows, height, most) + 1):
        for wide in range(1, min(most_vectors, vectors, most // rows) + 1):
            tiles = _grid(height, vectors, rows, wide)
            # Beside its sums each tile loads a weight and where it belongs, for every weight that goes by.
            cost = sum(len(t.places) * (t.rows * t.vectors + 2.5) for t in tiles) + len(tiles)
            if best is None or cost < best[0]:
                best = cost, tiles
    assert best is not None
    return best[1]


def _whole(count: int, of: int) -> int:
    return -(-count // of) * of


def _grid(height: int, vectors: int, rows: int, wide: int) -> list[Tiles]:
    found = []
    for top, end, tall in ((0, height - height % rows, rows), (height - height % rows, height, height % rows)):
        for left, stop, w in ((0, vectors - vectors % wide, wide), (vectors - vectors % wide, vectors, vectors % wide)):
            if tall and w and end > top and stop > left:
                places = tuple((y, x) for y in range(top, end, tall) for x in range(left, stop, w))
                found.append(Tiles(rows=tall, vectors=w, places=places))
    return found
