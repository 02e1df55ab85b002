"""The loops behind `numba.py`, over plain arrays: kernels stand as (K, R*S, C), which channels_last memory is already.

Every function is compiled for the processor at hand; none takes the GIL, none starts threads. The innermost loops run
along rows that are one in memory, which is the form that LLVM turns into vector code. Magnitudes are compared by their
bits: of floats >= 0 the order is that of the integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_WIDE = 512  # channels that are worked on together
_IN_CACHE = 1 << 16  # scores that stay in a core's own cache
_FEW = 4  # kernels of a channel that are looked for one by one
_GLANCE = 128  # weights of a row that are passed over together where none is wanted
_DEAD = np.int32(-1)
_INF = np.int32(0x7F800000)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_ONE = np.int32(1)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled on first use and kept on disk; where no folder can be written to, compiled once a process."""
    options: Any = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@_compiled
def finite(bits_N):  # type: ignore[no-untyped-def]
    """Whether no weight is NaN or inf; bits of float32, (N,)."""
    bad = 0
    for i in range(bits_N.shape[0]):
        bad += (bits_N[i] & _MAGNITUDE) >= _INF
    return bad == 0


@_compiled
def clear(alive_N, bits_N):  # type: ignore[no-untyped-def]
    """Write +0.0 where dead; nothing else changes by a bit."""
    for i in range(bits_N.shape[0]):
        bits_N[i] = bits_N[i] if alive_N[i] else 0


@_compiled
def window(bits_KWC, alive_KWC, count):  # type: ignore[no-untyped-def]
    """In each window the `count` smallest die: the dead first, of equals the lower index first.

    Returns whether any died.
    """
    K, W, C = bits_KWC.shape
    block = min(C, _WIDE)
    key = np.empty((W, block), np.int32)
    rank, above = np.empty(block, np.int32), np.empty(block, np.int32)
    died = False
    for k in range(K):
        for start in range(0, C, block):
            n = min(block, C - start)
            for j in range(n):
                rank[j] = 0
            for i in range(W):
                alive = alive_KWC[k, i][start:]
                for j in range(n):
                    rank[j] += np.int32(alive[j])
            due = np.int32(0)
            for j in range(n):
                due |= np.int32(rank[j] > W - count)
            if not due:  # as many as are to go are gone
                continue
            died = True
            for i in range(W):
                bits, alive, own = bits_KWC[k, i][start:], alive_KWC[k, i][start:], key[i]
                for j in range(n):
                    own[j] = bits[j] & _MAGNITUDE if alive[j] else _DEAD
            for i in range(W):
                own = key[i]
                for j in range(n):
                    rank[j] = 0
                    above[j] = own[j] + _ONE
                whole = W - W % 3
                for m in range(0, whole, 3):  # three at a time: fewer trips of `rank` to the cache
                    a, b, c = key[m], key[m + 1], key[m + 2]
                    # An equal of lower index counts as smaller: what is below own + 1 is at most own.
                    p = above if m < i else own
                    q = above if m + 1 < i else own
                    r = above if m + 2 < i else own
                    for j in range(n):
                        rank[j] += np.int32(a[j] < p[j]) + np.int32(b[j] < q[j]) + np.int32(c[j] < r[j])
                for m in range(whole, W):
                    a, p = key[m], above if m < i else own
                    for j in range(n):
                        rank[j] += np.int32(a[j] < p[j])
                bits, alive = bits_KWC[k, i][start:], alive_KWC[k, i][start:]
                for j in range(n):
                    bits[j] = bits[j] if rank[j] >= count else 0
                    alive[j] = alive[j] if rank[j] >= count else 0
    return died


@_compiled
def _scores(bits_KWC, alive_KWC, first, start, n, key):  # type: ignore[no-untyped-def]
    """The largest live magnitude of each kernel, -1 where all of it is dead; `key` is (rows, n or more)."""
    for k in range(key.shape[0]):
        own = key[k]
        bits, alive = bits_KWC[first + k, 0][start:], alive_KWC[first + k, 0][start:]
        for j in range(n):
            own[j] = bits[j] & _MAGNITUDE if alive[j] else _DEAD
        for i in range(1, bits_KWC.shape[1]):
            bits, alive = bits_KWC[first + k, i][start:], alive_KWC[first + k, i][start:]
            for j in range(n):
                magnitude = bits[j] & _MAGNITUDE if alive[j] else _DEAD
                own[j] = max(own[j], magnitude)


@_compiled
def _weakest(key, n, low, left, count):  # type: ignore[no-untyped-def]
    """Each column's smallest live key into `low`, how many have yet to go into `left`; returns the largest of these."""
    for j in range(n):
        low[j] = _MAGNITUDE
        left[j] = count
    for k in range(key.shape[0]):
        own = key[k]
        for j in range(n):
            left[j] -= np.int32(own[j] < 0)
            low[j] = min(low[j], own[j] if own[j] >= 0 else _MAGNITUDE)
    most = left[0]
    for j in range(n):
        most = max(most, left[j])
    return most


@_compiled
def _cutoffs(key, n, count, low, high, middle, found):  # type: ignore[no-untyped-def]
    """`high[j]` becomes what parts the `count` smallest of column j from the rest, by bisection between its extremes.

    That is the count-th smallest, or, as soon as just `count` keys are found at a value or below, this value. `low` is
    the smallest that may be it; `key` is (rows, n or more).
    """
    rows = key.shape[0]
    whole = rows - rows % 4
    for j in range(n):
        high[j] = _DEAD
    for k in range(rows):
        own = key[k]
        for j in range(n):
            high[j] = max(high[j], own[j])
    undecided = _ONE
    while undecided:
        for j in range(n):
            middle[j] = low[j] + ((high[j] - low[j]) >> _ONE)
            found[j] = 0
        for k in range(0, whole, 4):  # four at a time: fewer trips of `found` to the cache
            a, b, c, d = key[k], key[k + 1], key[k + 2], key[k + 3]
            for j in range(n):
                m = middle[j]
                found[j] += np.int32(a[j] <= m) + np.int32(b[j] <= m) + np.int32(c[j] <= m) + np.int32(d[j] <= m)
        for k in range(whole, rows):
            own = key[k]
            for j in range(n):
                found[j] += np.int32(own[j] <= middle[j])
        undecided = np.int32(0)
        for j in range(n):
            high[j] = middle[j] if found[j] >= count else high[j]
            low[j] = low[j] if found[j] > count else middle[j] + np.int32(found[j] < count)
            undecided |= np.int32(low[j] < high[j])


@_compiled
def _kill(bits_KWC, alive_KWC, first, start, n, key, cutoff, room, others):  # type: ignore[no-untyped-def]
    """Kernels under their column's cutoff die, and the first `room` of those that equal it; `key` follows."""
    dies = np.empty(n, np.int32)
    for k in range(key.shape[0]):
        own = key[k]
        some = np.int32(0)
        for j in range(n):
            tied = np.int32(own[j] == cutoff[j]) & np.int32(room[j] > 0)
            room[j] -= tied
            dies[j] = (np.int32(own[j] < cutoff[j]) | tied) & np.int32(own[j] >= 0)
            some |= dies[j]
        if some:
            for j in range(n):
                if dies[j]:
                    own[j] = _DEAD
                    for i in range(bits_KWC.shape[1]):
                        alive_KWC[first + k, i, start + j] = 0
                        bits_KWC[first + k, i, start + j] = 0
                        for other in others:
                            other[first + k, i, start + j] = 0


@_compiled
def kernels(bits_KWC, alive_KWC, count, groups, others):  # type: ignore[no-untyped-def]
    """Of the K / groups kernels that read an input channel the `count` weakest die, ordered as in `window`.

    Args:
        bits_KWC: magnitudes and signs; changed in place, like all others.
        alive_KWC: likewise.
        count: how many are to be gone of each channel's.
        groups: of the convolution.
        others: a tuple of one or more arrays like `bits_KWC`, zeroed where a kernel dies.
    """
    K, _, C = bits_KWC.shape
    rows = K // groups
    block = max(16, min(C, _WIDE, _IN_CACHE // rows))
    key = np.empty((rows, block), np.int32)
    low, high = np.empty(block, np.int32), np.empty(block, np.int32)
    middle, left = np.empty(block, np.int32), np.empty(block, np.int32)
    for first in range(0, K, rows):
        for start in range(0, C, block):
            n = min(block, C - start)
            _scores(bits_KWC, alive_KWC, first, start, n, key)
            most = _weakest(key, n, low, left, count)
            while 0 < most <= _FEW:  # the usual step: one after the other goes
                for j in range(n):
                    high[j] = low[j] if left[j] > 0 else _DEAD
                _kill(bits_KWC, alive_KWC, first, start, n, key, high, left, others)
                most = _weakest(key, n, low, left, count)
            if most > 0:
                _cutoffs(key, n, count, low, high, middle, left)
                for j in range(n):
                    left[j] = count
                for k in range(rows):
                    own = key[k]
                    for j in range(n):
                        left[j] -= np.int32(own[j] < high[j])
                _kill(bits_KWC, alive_KWC, first, start, n, key, high, left, others)


@_compiled
def fine(bits_OI, alive_OI, count, others):  # type: ignore[no-untyped-def]
    """Of all weights of a linear layer the `count` smallest die, the dead first, of equals the lower index first.

    But every neuron's strongest live weight, of equals the last, stays; the next smallest elsewhere goes in its place.
    A radix search on the bits: 16, then the other 15.

    Args:
        bits_OI: magnitudes and signs, contiguous; changed in place, like all others.
        alive_OI: likewise.
        count: how many are to be gone.
        others: a tuple of one or more arrays like `bits_OI`, zeroed where a weight dies.
    """
    O, I = bits_OI.shape
    strongest = np.full(O, -1, np.int64)
    tally = np.zeros(1 << 16, np.int64)
    alive, guarded = 0, 0
    for o in range(O):
        bits, here = bits_OI[o], alive_OI[o]
        best = _DEAD
        for i in range(I):
            best = max(best, bits[i] & _MAGNITUDE if here[i] else _DEAD)
        for i in range(I):
            alive += here[i]
        for i in range(I):
            tally[(bits[i] & _MAGNITUDE) >> 15] += here[i]
        if best >= 0:
            guarded += 1
            tally[best >> 15] -= 1
            for i in range(I - 1, -1, -1):
                if here[i] and (bits[i] & _MAGNITUDE) == best:
                    strongest[o] = i
                    break
    missing = min(count, O * I - guarded) - (O * I - alive)
    if missing <= 0:
        return
    top = 0
    while tally[top] < missing:
        missing -= tally[top]
        top += 1
    low = np.zeros(1 << 15, np.int64)
    for o in range(O):
        for start in range(0, I, _GLANCE):
            bits, here = bits_OI[o][start : start + _GLANCE], alive_OI[o][start : start + _GLANCE]
            some = 0
            for i in range(len(bits)):
                some += (((bits[i] & _MAGNITUDE) >> 15) == top) & (here[i] != 0)
            if some:
                for i in range(len(bits)):
                    if (((bits[i] & _MAGNITUDE) >> 15) == top) & (here[i] != 0):
                        low[bits[i] & 0x7FFF] += start + i != strongest[o]
    bottom = 0
    while low[bottom] < missing:
        missing -= low[bottom]
        bottom += 1
    cutoff = np.int32((top << 15) | bottom)
    for o in range(O):
        for start in range(0, I, _GLANCE):
            bits, here = bits_OI[o][start : start + _GLANCE], alive_OI[o][start : start + _GLANCE]
            some = 0
            for i in range(len(bits)):
                some += ((bits[i] & _MAGNITUDE) <= cutoff) & (here[i] != 0)
            if some:
                for i in range(len(bits)):
                    if ((bits[i] & _MAGNITUDE) <= cutoff) & (here[i] != 0):
                        tied = (bits[i] & _MAGNITUDE) == cutoff
                        if start + i == strongest[o] or (tied and missing == 0):
                            continue
                        missing -= tied
                        here[i] = 0
                        bits[i] = 0
                        for other in others:
                            other[o, start + i] = 0
