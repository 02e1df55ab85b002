"""Each R x S window keeps some of its weights: how many, and the number of the pattern among all such patterns.

Patterns are numbered by the combinatorial number system: the pattern whose weights sit at places p1 < p2 < ... < pk is
number C(p1, 1) + C(p2, 2) + ... + C(pk, k), which runs from 0 to C(n, k) - 1 (Knuth, TAOCP 4A, 7.2.1.3, Theorem L).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from starfire_cli.damage import Damaged
from starfire_cli.formats.packed.encoding import ENCODINGS, Alive
from starfire_cli.formats.packed.information import counts_bits, log2_choose
from starfire_cli.formats.packed.small import Bytes
from starfire_cli.formats.packed.streams import Bits, StreamReader, StreamWriter

LARGEST = 62  # C(62, 31) is the last middle binomial below 2^63
_AT_ONCE = 1 << 18  # windows, so that their numbers, of 8 bytes each, stay small
_TABLED = 12  # windows up to this size are looked up among all their patterns


@ENCODINGS.register("window")
@dataclass(frozen=True, kw_only=True)
class WindowEncoding:
    """The count of each window, then the pattern numbers of those that keep some but not all, in planes of bytes."""

    def bound(self, mask_KCn: Bits) -> float | None:
        n = mask_KCn.shape[2]
        if not 2 <= n <= LARGEST:
            return None
        kept_M = _kept(mask_KCn.reshape(-1, n))
        return log2_choose(n, kept_M) + counts_bits(kept_M)

    def encode(self, mask_KCn: Bits, out: StreamWriter) -> float | None:
        n = mask_KCn.shape[2]
        bits = self.bound(mask_KCn)
        if bits is None:
            return None
        mask_Mn = mask_KCn.reshape(-1, n)
        kept_M = _kept(mask_Mn)
        present, index = np.unique(kept_M, return_inverse=True)
        out.symbols(index.astype(np.uint8).reshape(-1), present.astype(np.int64))
        numbers = _rank(mask_Mn)[(kept_M > 0) & (kept_M < n)]
        for shift, limit in _planes(present.tolist(), n):
            out.small((numbers >> np.uint64(shift)).astype(np.uint8), limit)
        return bits

    def decode(self, shape: tuple[int, int, int], data: StreamReader) -> Alive:
        K, C, n = shape
        if not 2 <= n <= LARGEST:
            raise Damaged(f"windows of {n} weights")
        index, present = data.symbols(K * C, n + 1)
        if present.tolist() in ([0], [n]):
            return Alive(np.full(K * C, present[0] == n), n)
        kept_M = present.astype(np.uint8)[index]
        some_M = (kept_M > 0) & (kept_M < n)
        some = int(some_M.sum())
        number = np.zeros(some, np.uint64)
        for shift, limit in _planes(present.tolist(), n):
            number |= data.small(some, limit).astype(np.uint64) << np.uint64(shift)
        if (number >= _choose(n)[n][kept_M[some_M]]).any():
            raise Damaged("a pattern number is out of range")
        mask_Mn = np.empty((K * C, n), np.bool_)
        done = 0
        for start in range(0, K * C, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            if not kept_M[part].any():
                mask_Mn[part] = False
                continue
            number_M = np.zeros(len(kept_M[part]), np.uint64)
            here = int(some_M[part].sum())
            number_M[some_M[part]] = number[done : done + here]
            mask_Mn[part] = _unrank(number_M, kept_M[part], n)
            done += here
        return Alive(mask_Mn.reshape(-1))


def _kept(mask_Mn: Bits) -> NDArray[np.uint8]:
    """How many weights each window keeps; adding n columns is many times faster than summing M short rows."""
    bits = mask_Mn.view(np.uint8)
    kept_M = bits[:, 0].copy()
    for place in range(1, bits.shape[1]):
        kept_M += bits[:, place]
    return kept_M


def _planes(present: list[int], n: int) -> list[tuple[int, int]]:
    """The bytes of a pattern number, lowest first, as (shift, values below); none where there is one pattern only."""
    last = max((math.comb(n, kept) for kept in present), default=1) - 1
    return [(shift, min(255, last >> shift) + 1) for shift in range(0, last.bit_length(), 8)]


@cache
def _choose(n: int) -> NDArray[np.uint64]:
    """C(p, k) for p and k from 0 to n."""
    return np.array([[math.comb(p, k) for k in range(n + 1)] for p in range(n + 1)], np.uint64)


def _rank(mask_Mn: Bits) -> NDArray[np.uint64]:
    """The pattern numbers, (M,)."""
    choose = _choose(mask_Mn.shape[1])
    number = np.zeros(len(mask_Mn), np.uint64)
    so_far = np.zeros(len(mask_Mn), np.uint8)
    for place, here in enumerate(np.ascontiguousarray(mask_Mn.T)):
        so_far += here
        number += choose[place][so_far] * here
    return number


def _unrank(number_M: NDArray[np.uint64], kept_M: Bytes, n: int) -> Bits:
    """Patterns, (M, n). From the last place down: a weight sits there if C(place, kept) is not above the number."""
    if n <= _TABLED and len(number_M) > 1 << n:
        patterns, first = _table(n)
        return patterns.take(first[kept_M] + number_M.astype(np.intp), axis=0)
    choose = _choose(n)
    left, kept = number_M.copy(), kept_M.copy()
    mask_Mn = np.zeros((len(number_M), n), np.bool_)
    for place in range(n - 1, -1, -1):
        below = choose[place][kept]
        here = (left >= below) & (kept > 0)
        mask_Mn[:, place] = here
        left -= below * here
        kept -= here
    return mask_Mn


@cache
def _table(n: int) -> tuple[Bits, NDArray[np.intp]]:
    """All 2^n patterns, by count and then number, and where each count begins."""
    sizes = [math.comb(n, kept) for kept in range(n + 1)]
    number = np.concatenate([np.arange(size, dtype=np.uint64) for size in sizes])
    kept = np.repeat(np.arange(n + 1, dtype=np.uint8), sizes)
    return _unrank(number, kept, n), np.cumsum([0, *sizes[:-1]], dtype=np.intp)
