"""A pool of memory that every call reuses: a few large pieces, in huge pages where there are any.

numpy asks the system for huge pages where an array is large, torch does not; a network touches more small pages than a
core remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from starfire_cli.sparse.weights import LiveWeights, LoopWeights

_PIECE = 16 << 20  # bytes that are asked of the system at a time
_ALIGNED = 64  # bytes: a cache line, and the widest vector


def zeros(rows: int, floats: int) -> Tensor:
    """(rows, floats) of zeros; the first row begins at a cache line, the others do if `floats` fill whole ones."""
    return torch.from_numpy(_aligned(4 * rows * floats).view(np.float32)).view(rows, floats)


class LoopWeightsCache:
    """A cache of weights ordered for the loops, shared by all programs that use them, side by side in memory."""

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[LiveWeights, LoopWeights]] = {}
        self._piece, self._used = _aligned(0), 0

    def get(self, live: LiveWeights, key: Hashable, order: Callable[[], LoopWeights]) -> LoopWeights:
        """The result of `order` for `live`, cached under `key`."""
        whole = id(live), key
        if whole not in self._found:
            made = order()
            segments, offsets, weights = (self._kept(a) for a in (made.segments, made.offsets, made.weights))
            made = LoopWeights(steps=made.steps, segments=segments, offsets=offsets, weights=weights)
            self._found[whole] = live, made  # `live` stays, so that its id stays its own
        return self._found[whole][1]

    def _kept(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._used + array.nbytes > len(self._piece):
            self._piece, self._used = _aligned(max(_PIECE, array.nbytes)), 0
        place = self._piece[self._used : self._used + array.nbytes].view(array.dtype)
        self._used += -(-array.nbytes // _ALIGNED) * _ALIGNED
        place[:] = array
        return place


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    memory = np.zeros(size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + size]
