"""The order of a convolution's weights in channels_last memory, and their indices in the order of the axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Places = NDArray[np.intp]
P = TypeVar("P", Places, Tensor)


@dataclass(frozen=True, kw_only=True)
class MemoryOrder:
    """Weights that lie in memory as (K, R, S, C), while their index counts along (K, C, R, S).

    Args:
        channels: C.
        window: R * S.
    """

    channels: int
    window: int

    def indices(self, places: P) -> P:
        """The indices of the weights that lie at some places."""
        return _transposed(places, self.window, self.channels)

    def places(self, indices: P) -> P:
        """The inverse of `indices`."""
        return _transposed(indices, self.channels, self.window)

    def by_index(self, values_N: Tensor) -> Tensor:
        """A copy of values in the order of memory, (N,), in the order of the indices."""
        return values_N.reshape(-1, self.window, self.channels).transpose(1, 2).reshape(-1)

    def by_place(self, values_N: Tensor) -> Tensor:
        """The inverse of `by_index`."""
        return values_N.reshape(-1, self.channels, self.window).transpose(1, 2).reshape(-1)


def _transposed(at: P, rows: int, columns: int) -> P:
    """Positions in a stack of matrices (rows, columns) as positions in the stack of their transposes."""
    all_rows = at // columns
    matrix = all_rows // rows
    return (at - all_rows * columns + matrix * columns) * rows + (all_rows - matrix * rows)
