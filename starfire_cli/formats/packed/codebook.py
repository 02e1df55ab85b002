"""Encodes live values by a codebook: the few different words among them, and the number of each value's word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from starfire_cli.damage import Damaged
from starfire_cli.formats.packed.dtypes import Dtype
from starfire_cli.formats.packed.information import counts_bits
from starfire_cli.formats.packed.live_values import Words
from starfire_cli.formats.packed.small import Bytes
from starfire_cli.formats.packed.streams import Bits, StreamReader, StreamWriter

LARGEST = 256
_ESCAPE = 15  # stands for itself and all larger numbers, where there are any
_CHUNK = 1 << 16  # words looked at together: a layer that has no codebook shows it in the first of them


class CodebookWords(NamedTuple):
    """The different words of a layer's values in ascending order, (A,), and the number of each value's, (n,)."""

    words: Words
    numbers: Bytes

    def bound_bits(self, dtype: Dtype) -> float:
        """The entropy of the numbers, and the words as they are."""
        return counts_bits(self.numbers) + len(self.words) * dtype.bits


def find(words: Words, dtype: Dtype, alive: Bits | None = None) -> CodebookWords | None:
    """The codebook of a layer's values, of those in `alive` if given.

    None where there are more than 256 different words or no values, or a codebook is not defined: for words of one
    byte, which are numbers of an alphabet already, and for complex numbers.
    """
    if dtype.bytes == 1 or dtype.words > 1:
        return None
    found: Words = words[:0]
    numbers: list[Bytes] = []
    for live in _live_parts(words, alive):
        strange = live if not found.size else live[found[_place(found, live)] != live]
        if strange.size:
            more = np.union1d(found, strange)
            if more.size > LARGEST:
                return None
            renumbered = np.searchsorted(more, found).astype(np.uint8)
            numbers = [renumbered[part] for part in numbers]
            found = more
        numbers.append(_place(found, live).astype(np.uint8))
    return CodebookWords(found, np.concatenate(numbers)) if found.size else None


def encode(codebook: CodebookWords, out: StreamWriter) -> None:
    """Write the words, frequent ones first, and the number of each value's word.

    Numbers share a byte by twos, which an entropy coder of bytes serves better; the few from 15 on follow apart.
    """
    size = len(codebook.words)
    order = np.argsort(-np.bincount(codebook.numbers, minlength=size), kind="stable")
    rank = np.empty(size, np.uint8)
    rank[order] = np.arange(size)
    numbers = rank[codebook.numbers]
    out.blob(codebook.words[order].tobytes())
    out.small(np.minimum(numbers, _ESCAPE), min(size, _ESCAPE + 1))
    if size > _ESCAPE + 1:
        out.small(numbers[numbers >= _ESCAPE] - np.uint8(_ESCAPE), size - _ESCAPE)


class CodebookValues:
    """The live values of a layer that has a codebook, read in pieces as `live_values.LiveValues`.

    Args:
        count: how many there are.
        size: of the codebook, from 1 to 256.
        dtype: what they are.
        data: where they are read from. Raises Damaged.
    """

    def __init__(self, count: int, size: int, dtype: Dtype, data: StreamReader) -> None:
        self._words: Words = np.frombuffer(data.blob(size * dtype.bytes), dtype.word)
        self._numbers = data.small(count, min(size, _ESCAPE + 1))
        if size > _ESCAPE + 1:
            late = np.flatnonzero(self._numbers == _ESCAPE)
            self._numbers[late] = np.minimum(data.small(late.size, size - _ESCAPE), 255 - _ESCAPE) + _ESCAPE
        if count and int(self._numbers.max()) >= size:
            raise Damaged(f"a value is not among the {size} of its codebook")

    def words(self, start: int, stop: int) -> Words:
        """Values `start` to `stop`, as words."""
        return self._words.take(self._numbers[start:stop], mode="wrap")  # quicker than clip; all are in range


def _place(found: Words, words: Words) -> NDArray[np.intp]:
    """The index of each word in `found`, which is ascending, if it is there."""
    return np.minimum(np.searchsorted(found, words), len(found) - 1)


def _live_parts(words: Words, alive: Bits | None) -> Iterator[Words]:
    for start in range(0, words.size, _CHUNK):
        part = words[start : start + _CHUNK]
        live = part if alive is None else part[alive[start : start + _CHUNK]]
        if live.size:
            yield live
