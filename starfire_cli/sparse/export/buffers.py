"""The values of a network while it runs: the map that each lies in, and the order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from starfire_cli.sparse.layout import Layout


@dataclass(frozen=True, eq=False, kw_only=True)
class Buffer:
    """A map that some step writes.

    Args:
        name: of the operation.
        channels: how many.
        pixels: height and width; a vector of F numbers is one channel of 1 x F.
    """

    name: str
    channels: int
    pixels: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, *self.pixels

    def positions(self, layout: Layout) -> npt.NDArray[np.int64]:
        """Floats from the first pixel to each number, in order of channel, row and column."""
        c, y, x = (np.arange(size) for size in self.shape)
        return (c[:, None, None] * layout.plane + y[:, None] * layout.row + x).reshape(-1)


@dataclass(frozen=True, kw_only=True)
class Value:
    """The value of a node of the graph for one image: numbers of a map, in their order or in another.

    Args:
        buffer: where they lie.
        shape: as torch sees it, with the images in front, of which there is one.
        index: int64, of that shape: 1 for the map's first number, 2 for the next, 0 for zero; None where they lie in
            order.
    """

    buffer: Buffer
    shape: tuple[int, ...]
    index: Tensor | None = None

    @property
    def is_map(self) -> bool:
        """Whether it is a whole map, (1, C, H, W), as it lies."""
        return self.index is None and self.shape == (1, *self.buffer.shape)

    @property
    def is_whole(self) -> bool:
        """Whether it has each number of the map once."""
        size = int(np.prod(self.buffer.shape))
        if self.index is None:
            return True
        return self.index.numel() == size and bool(
            (self.index.flatten().sort().values == torch.arange(1, size + 1)).all()
        )

    @property
    def is_channels_last(self) -> bool:
        """Whether it is a whole map, (1, H, W, C)."""
        C, H, W = self.buffer.shape
        return self.shape == (1, H, W, C) and torch.equal(self.indices(), _ordered((1, C, H, W)).permute(0, 2, 3, 1))

    def indices(self) -> Tensor:
        """`index`, or what it is where it is None."""
        return _ordered(self.shape) if self.index is None else self.index

    def positions(self, layout: Layout) -> npt.NDArray[np.int64]:
        """Floats from the map's first pixel to each number; those that are zero are read from what is before it."""
        there = np.concatenate([[-1], self.buffer.positions(layout)])
        found: npt.NDArray[np.int64] = there[self.indices().flatten().numpy()]
        return found


def rearranged(result: Any, buffer: Buffer) -> Any:
    """The values that an operation gives which was run on `indices` in place of numbers."""
    if isinstance(result, Tensor):
        result = result.long()
        plain = torch.equal(result.flatten(), _ordered((result.numel(),)))
        whole = plain and result.numel() == int(np.prod(buffer.shape))
        return Value(buffer=buffer, shape=tuple(result.shape), index=None if whole else result)
    if isinstance(result, tuple | list):
        return tuple(rearranged(part, buffer) for part in result)
    return result


def _ordered(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(1, int(np.prod(shape)) + 1).reshape(shape)
