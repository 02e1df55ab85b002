"""Whole tiles of a weight matrix are dead, and perhaps single weights in the live ones (paper, section 2.1.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfire_cli.damage import Damaged
from starfire_cli.formats.packed.encoding import ENCODINGS, Alive
from starfire_cli.formats.packed.information import log2_choose
from starfire_cli.formats.packed.streams import Bits, StreamReader, StreamWriter

SIDES = (8, 4, 3, 2)


@ENCODINGS.register("blocks")
@dataclass(frozen=True, kw_only=True)
class BlocksEncoding:
    """A bit a tile; then a bit for each weight of the live tiles, in the matrix's own order."""

    def bound(self, mask_KCn: Bits) -> float | None:
        found = _cheapest(mask_KCn)
        return None if found is None else found[0]

    def encode(self, mask_KCn: Bits, out: StreamWriter) -> float | None:
        found = _cheapest(mask_KCn)
        if found is None:
            return None
        (bits, side, alive), mask_OI = found, mask_KCn[:, :, 0]
        out.byte(side)
        out.bits(alive.reshape(-1))
        out.bits(mask_OI[_spread(alive, side, mask_OI.shape)])
        return bits

    def decode(self, shape: tuple[int, int, int], data: StreamReader) -> Alive:
        O, I, n = shape
        side = data.byte()
        if n != 1 or side < 2:
            raise Damaged(f"tiles of {side} x {side} in a layer of {shape}")
        rows, columns = -(-O // side), -(-I // side)
        mask = _spread(data.bits(rows * columns).reshape(rows, columns), side, (O, I))
        mask[mask] = data.bits(int(mask.sum()))
        return Alive(mask.reshape(-1))


def _cheapest(mask_KCn: Bits) -> tuple[float, int, Bits] | None:
    """Of all sizes of tiles the one that takes the fewest bits: (bits, side, which tiles hold anything alive).

    None where tiles tell nothing about the weights in them.
    """
    if mask_KCn.shape[2] != 1 or mask_KCn.size == 0:
        return None
    mask_OI = mask_KCn[:, :, 0]
    kept = np.array([mask_OI.sum()])
    tried = []
    for side in SIDES:
        alive = _tiles(mask_OI, side)
        inside = _weights_in(alive, side, mask_OI.shape)
        bits = log2_choose(alive.size, np.array([alive.sum()])) + log2_choose(inside, kept)
        tried.append((bits, side, alive))
    best = min(tried, key=lambda t: t[0])
    return best if best[0] <= 0.99 * log2_choose(mask_OI.size, kept) else None


def _tiles(mask_OI: Bits, side: int) -> Bits:
    """Which tiles hold anything alive; those at the ragged edges are smaller."""
    rows = mask_OI[::side].copy()
    for i in range(1, side):
        part = mask_OI[i::side]
        rows[: len(part)] |= part
    tiles = rows[:, ::side].copy()
    for i in range(1, side):
        part = rows[:, i::side]
        tiles[:, : part.shape[1]] |= part
    return tiles


def _weights_in(alive: Bits, side: int, shape: tuple[int, ...]) -> int:
    """How many weights the live tiles have."""
    heights, widths = _extents(side, shape)
    return int(heights @ alive @ widths)


def _spread(alive: Bits, side: int, shape: tuple[int, ...]) -> Bits:
    """Tiles back to weights; no tile is made larger than what the edges leave of it."""
    heights, widths = _extents(side, shape)
    return alive.repeat(heights, 0).repeat(widths, 1)


def _extents(side: int, shape: tuple[int, ...]) -> tuple[NDArray[np.intp], ...]:
    """How many rows the tiles of each row have, and how many columns those of each column."""
    return tuple(np.minimum(side, end - np.arange(0, end, side)) for end in shape)
