"""A piece of one weight's live entries: where they lie, their gradients and their packed state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_PIECE = 1 << 16  # live entries: with what is computed of them, a piece stays in a core's cache


@dataclass(frozen=True, kw_only=True)
class LivePiece:
    """The live entries of one weight, with their packed optimizer state.

    Args:
        places_L: of L live entries in the weight's memory, int32, ascending.
        weight_N: all N entries of the weight, changed in place.
        gradient: of all entries, (N,), or of the live ones alone, (L,), with `packed`.
        state: the optimizer's of the live entries, (L,) each, changed in place.
        packed: whether the gradient is that of the live entries alone.
    """

    places_L: NDArray[np.int32]
    weight_N: Floats
    gradient: Floats
    state: tuple[Floats, ...]
    packed: bool = False

    def split(self) -> Iterator[LivePiece]:
        """The same in pieces that threads take."""
        for start in range(0, len(self.places_L), _PIECE):
            part = slice(start, start + _PIECE)
            yield LivePiece(
                places_L=self.places_L[part],
                weight_N=self.weight_N,
                gradient=self.gradient[part] if self.packed else self.gradient,
                state=tuple(one[part] for one in self.state),
                packed=self.packed,
            )

    def arrays(self) -> tuple[Any, ...]:
        """All arrays, in the order of the loops' arguments."""
        return self.places_L, self.weight_N, self.gradient, *self.state
