"""Encodes a layer's live values: exponents are entropy-coded, the remaining bits are stored as they are.

A float is rotated left by one bit, so that its sign sits at the bottom and its exponent at the top. Its first 8 + m
bits are one symbol of an alphabet of at most 256; what is left is written as it is, in planes of 8, 4, 2 or 1 bits that
add up to 8 - m, and in planes of 16. m (0 to 8) is chosen for size: weights thin out towards larger magnitudes within
an exponent too, so the first bits of the mantissa carry a little less than a bit each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfire_cli.damage import Damaged
from starfire_cli.formats.packed.dtypes import Dtype
from starfire_cli.formats.packed.information import entropy_bits
from starfire_cli.formats.packed.streams import StreamReader, StreamWriter

Words = NDArray[np.unsignedinteger[Any]]


def encode(words: Words, dtype: Dtype, out: StreamWriter) -> None:
    """Write words of 1, 2, 4 or 8 bytes."""
    if words.size == 0:
        return
    rotated = _rotate_left(words) if dtype.rotated else words
    if dtype.bytes == 1:
        _symbols(rotated, np.bincount(rotated, minlength=256), out)
        return
    first = (rotated >> _as(rotated, dtype.bits - 16)).astype(np.uint16)
    counts = np.bincount(first, minlength=1 << 16)
    more = _best_split(counts, words.size)
    out.byte(more)
    _symbols(first >> _as(first, 8 - more), counts.reshape(256 << more, -1).sum(1), out)
    left = 8 - more
    for width in _widths(left):
        left -= width
        out.small((first >> _as(first, left) & _as(first, (1 << width) - 1)).astype(np.uint8), 1 << width)
    for shift in range(dtype.bits - 32, -1, -16):
        out.blob((rotated >> _as(rotated, shift)).astype("<u2").tobytes())


def _symbols(symbols: Words, counts: NDArray[np.intp], out: StreamWriter) -> None:
    alphabet = np.flatnonzero(counts)
    position = np.zeros(counts.size, np.uint8)
    position[alphabet] = np.arange(alphabet.size)
    out.symbols(position[symbols], alphabet)


class LiveValues:
    """The live values of a layer, read in pieces so that no memory beyond the layer's own is needed.

    Args:
        count: how many there are.
        dtype: what they are.
        data: where they are read from. Raises Damaged.
    """

    def __init__(self, count: int, dtype: Dtype, data: StreamReader) -> None:
        self._dtype = dtype
        self._planes: list[NDArray[Any]] = []
        if count == 0:
            return
        more = data.byte() if dtype.bytes > 1 else 0
        if more > 8:
            raise Damaged(f"symbols of {8 + more} bits")
        index, alphabet = data.symbols(count, 256 << more)
        self._index, self._has_rest = index, more < 8
        self._first = alphabet.astype(dtype.word) << _word(dtype, dtype.bits - 8 - more)
        if dtype.bytes > 1:
            self._rest = np.zeros(count, np.uint8)
            for width in _widths(8 - more):
                self._rest = self._rest << np.uint8(width) | data.small(count, 1 << width)
            self._planes = [np.frombuffer(data.blob(2 * count), "<u2") for _ in range(dtype.bits // 16 - 1)]

    def words(self, start: int, stop: int) -> Words:
        """LiveValues `start` to `stop`, as words."""
        dtype = self._dtype
        words: Words = self._first.take(self._index[start:stop], mode="wrap")  # quicker than clip; both are in range
        if dtype.bytes > 1 and self._has_rest:
            words |= self._rest[start:stop].astype(dtype.word) << _word(dtype, dtype.bits - 16)
        for plane, shift in zip(self._planes, range(dtype.bits - 32, -1, -16), strict=True):
            words |= plane[start:stop].astype(dtype.word) << _word(dtype, shift)
        return _rotate_right(words) if dtype.rotated else words


def _widths(bits: int) -> list[int]:
    """Splits `bits` into widths that fill bytes: 7 is 4, 2 and 1."""
    return [width for width in (8, 4, 2, 1) if bits & width]


def bound_bits(words: Words, dtype: Dtype) -> float:
    """The entropy of the exponent bytes and every other bit as it is (what docs/compress.md calls the bound)."""
    return bound_of_counts(top_counts(words, dtype), dtype)


def top_counts(words: Words, dtype: Dtype, alive: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
    """Counts of each value of a word's top byte (a float's exponent); of words in `alive`, if given."""
    shifted = words
    if dtype.rotated:
        shifted = _rotate_left(words) if dtype.bits == 8 else words << _as(words, 1)
    top = (shifted >> _as(shifted, dtype.bits - 8)).astype(np.uint8)
    counts: NDArray[np.intp] = np.bincount(top if alive is None else top[alive], minlength=256)
    return counts


def bound_of_counts(counts: NDArray[np.intp], dtype: Dtype) -> float:
    """`bound_bits` of words with these `top_counts`."""
    return entropy_bits(counts) + int(counts.sum()) * (dtype.bits - 8)


def _best_split(counts: NDArray[np.intp], total: int) -> int:
    """The number of bits beyond the first 8 that makes the symbols cheapest, by counts of the first 16."""
    cost = {}
    for more in range(8, -1, -1):
        size = int(np.count_nonzero(counts))
        if size <= 256:
            cost[more] = entropy_bits(counts) + total * (8 - more) + 8 * size
        counts = counts[::2] + counts[1::2]
    return min(cost, key=lambda more: (cost[more], more))


def _rotate_left(words: Words) -> Words:
    rotated: Words = words << _as(words, 1) | words >> _as(words, words.dtype.itemsize * 8 - 1)
    return rotated


def _rotate_right(words: Words) -> Words:
    rotated: Words = words >> _as(words, 1) | words << _as(words, words.dtype.itemsize * 8 - 1)
    return rotated


def _as(words: Words, number: int) -> Any:
    return words.dtype.type(number)


def _word(dtype: Dtype, number: int) -> Any:
    return dtype.word.type(number)
