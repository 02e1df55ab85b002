"""Packs values below 256 into bytes at 1, 2, 4 or 8 bits each, the first in the lowest bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def width(limit: int) -> int:
    """The number of bits that hold a value below `limit`: 1, 2, 4 or 8."""
    return next(bits for bits in (1, 2, 4, 8) if limit <= 1 << bits)


def pack(values: Bytes, bits: int) -> Bytes:
    """8 / bits values a byte; the last byte is filled up with zeros."""
    if bits == 8:
        return values
    if bits == 1:
        return np.packbits(values, bitorder="little")
    per_byte = 8 // bits
    rows = np.pad(values, (0, -values.size % per_byte)).reshape(-1, per_byte)
    packed = rows[:, 0].copy()
    for place in range(1, per_byte):
        packed |= rows[:, place] << np.uint8(place * bits)
    return packed


def unpack(data: Bytes, bits: int, count: int) -> Bytes:
    """The first `count` values in `data`."""
    if bits == 8:
        return data
    if bits == 1:
        return np.unpackbits(data, count=count, bitorder="little")
    per_byte = 8 // bits
    values = np.empty((data.size, per_byte), np.uint8)
    for place in range(per_byte):
        values[:, place] = data >> np.uint8(place * bits) & np.uint8((1 << bits) - 1)
    return values.reshape(-1)[:count]
