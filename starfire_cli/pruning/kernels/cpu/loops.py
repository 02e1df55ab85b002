"""The compiled loops behind `numba.py`, over plain arrays: kernels are stored as (K, R*S, C), which channels_last
memory is already.

Every function is compiled for the processor at hand; none takes the GIL, none starts threads. The innermost loops run
along rows that are one in memory, which is the form that LLVM turns into vector code; there, bits are put together
rather than chosen between, as processors without masks are slow at that. Magnitudes are compared by their bits: of
floats >= 0 the order is that of the integers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

GLANCE = 32
"""Weights of a neuron in a group."""

_BLOCK = 512  # candidates whose flags are made together
_WIDE = 512  # channels whose kernels are worked on together: long rows are read faster than scores leave the cache
_SPARE = 4  # groups for each one wanted: the more, the fewer lie below the bound in vain
_SMALL = 4  # kernels; of smaller groups so many are wanted that to look through all scores is faster (from a 16th on)
_NEVER = np.int32(-1)  # below every magnitude
_GONE = np.int32(0x7FFFFFFF)  # what the dead count as: above every finite magnitude
_INF = np.int32(0x7F800000)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_ONE = np.int32(1)


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use and cache on disk; where no folder can be written to, compile once a process."""
    options: Any = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


def is_compiled(loop: Any) -> bool:
    """Whether a loop was compiled already, by this process or one before it."""
    place, kept = loop.stats.cache_path, f"*.{loop.py_func.__name__}-{loop.py_func.__code__.co_firstlineno}.*.nbi"
    return bool(loop.signatures) or bool(place and any(Path(place).glob(kept)))


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
        bits_N[i] &= -np.int32(alive_N[i])


@_compiled
def listed(bits_N, among_N, low, high, at, chosen):  # type: ignore[no-untyped-def]
    """List the candidates whose magnitude is in [low, high]: places in `at`, bits in `chosen`, (N,) both.

    Returns how many there are, and how many of all candidates are above 0.
    """
    is_one = np.empty(_BLOCK, np.uint8)
    eight_are = is_one.view(np.uint64)
    found, above = 0, np.int64(0)
    whole = len(bits_N) - len(bits_N) % _BLOCK
    for start in range(0, whole, _BLOCK):
        bits, among = bits_N[start : start + _BLOCK], among_N[start : start + _BLOCK]
        positive = np.int32(0)
        for i in range(_BLOCK):
            size = bits[i] & _MAGNITUDE
            is_one[i] = (size >= low) & (size <= high) & (among[i] != 0)
            positive += np.int32((bits[i] > 0) & (bits[i] <= _INF) & (among[i] != 0))  # no NaN
        above += positive
        for eight in range(_BLOCK // 8):
            if eight_are[eight]:
                for i in range(8 * eight, 8 * eight + 8):
                    at[found], chosen[found] = start + i, bits[i]
                    found += is_one[i]
    for n in range(whole, len(bits_N)):
        size = bits_N[n] & _MAGNITUDE
        above += among_N[n] and bits_N[n] > 0 and bits_N[n] <= _INF
        if among_N[n] and size >= low and size <= high:
            at[found], chosen[found] = n, bits_N[n]
            found += 1
    return found, above


@_compiled
def _keys(bits_N, alive_N, key_N):  # type: ignore[no-untyped-def]
    """Write the magnitudes of live weights into `key_N`, larger keys for the dead; returns the number alive."""
    living = np.int32(0)
    for n in range(len(bits_N)):
        alive = np.int32(alive_N[n])
        key_N[n] = (bits_N[n] | (alive - _ONE)) & _GONE
        living += alive
    return living


@_compiled
def _minima(key_NC, low_C):  # type: ignore[no-untyped-def]
    """The smallest key of each column."""
    N, C = key_NC.shape
    whole = N - N % 3
    for c in range(C):
        low_C[c] = _GONE
    for n in range(0, whole, 3):  # three at a time: fewer trips of `low_C` to the cache
        x, y, z = key_NC[n], key_NC[n + 1], key_NC[n + 2]
        for c in range(C):
            low_C[c] = min(min(low_C[c], x[c]), min(y[c], z[c]))
    for n in range(whole, N):
        x = key_NC[n]
        for c in range(C):
            low_C[c] = min(low_C[c], x[c])


@_compiled
def window(bits_KWC, alive_KWC, count, others):  # type: ignore[no-untyped-def]
    """In each window the `count` smallest die: the dead first, of equals the lower index first. Returns how many live.

    They go one after the other, each time in all C windows of an output channel at once.

    Args:
        bits_KWC: magnitudes and signs, contiguous; changed in place, like all others.
        alive_KWC: likewise.
        count: how many are to be gone of each window.
        others: a tuple of one or more arrays like `bits_KWC`, zeroed where a weight dies.
    """
    K, W, C = bits_KWC.shape
    key_WC = np.empty((W, C), np.int32)
    key = key_WC.reshape(-1)
    missing_C, low_C, due_C = np.empty(C, np.int32), np.empty(C, np.int32), np.empty(C, np.int32)
    living = K * C * (W - count)  # where no window has more dead
    for k in range(K):
        for c in range(C):
            missing_C[c] = count - W
        for i in range(W):
            alive_C = alive_KWC[k, i]
            for c in range(C):
                missing_C[c] += np.int32(alive_C[c])
        most, beyond = missing_C[0], np.int32(0)
        for c in range(C):
            most = max(most, missing_C[c])
            beyond += min(missing_C[c], np.int32(0))
        living += beyond
        if most <= 0:  # as many as are to go are gone
            continue
        # Rows that follow one another in memory are gone through as one: only so they are fetched ahead of time.
        bits, alive = bits_KWC[k].reshape(-1), alive_KWC[k].reshape(-1)
        _keys(bits, alive, key)
        for time in range(most):
            _minima(key_WC, low_C)
            for c in range(C):
                due_C[c] = np.int32(missing_C[c] > time)
            for i in range(W):
                own_C = key_WC[i]
                for c in range(C):
                    first = np.int32(own_C[c] == low_C[c]) & due_C[c]
                    due_C[c] -= first  # of equals no other
                    own_C[c] |= -first & _GONE
        for n in range(W * C):
            alive[n] = key[n] != _GONE
        clear(alive, bits)
        for other in others:
            clear(alive, other[k].reshape(-1))
    return living


@_compiled
def _missing(alive_KWC, first, rows, keep, missing_C):  # type: ignore[no-untyped-def]
    """The number of kernels of each channel alive beyond the `keep` allowed, among `rows` kernels from `first` on.

    Returns how many of their weights live.
    """
    _, W, C = alive_KWC.shape
    any_C = np.empty(C, np.uint8)
    living = 0
    for c in range(C):
        missing_C[c] = -keep
    for k in range(first, first + rows):
        for c in range(C):
            any_C[c] = 0
        for i in range(W):
            alive_C = alive_KWC[k, i]
            here = np.int32(0)
            for c in range(C):
                any_C[c] |= alive_C[c]
                here += np.int32(alive_C[c])
            living += int(here)
        for c in range(C):
            missing_C[c] += np.int32(any_C[c])
    return living


@_compiled
def _scores(bits_KWC, alive_KWC, first, start, n, key, low, size):  # type: ignore[no-untyped-def]
    """Write each kernel's largest live magnitude into `key`, (rows, n or more), larger keys for the dead.

    And of each `size` rows the smallest into `low`.
    """
    for k in range(key.shape[0]):
        own, smallest = key[k], low[k // size]
        bits, alive = bits_KWC[first + k, 0][start:], alive_KWC[first + k, 0][start:]
        for j in range(n):
            own[j] = (bits[j] & _MAGNITUDE) | (np.int32(alive[j]) - _ONE)  # -1 where dead
        for i in range(1, bits_KWC.shape[1]):
            bits, alive = bits_KWC[first + k, i][start:], alive_KWC[first + k, i][start:]
            for j in range(n):
                own[j] = max(own[j], np.int32((bits[j] & _MAGNITUDE) | (np.int32(alive[j]) - _ONE)))
        for j in range(n):
            own[j] &= _GONE
            smallest[j] = min(smallest[j], own[j])
        for j in range(n, len(own)):
            own[j] = _GONE


@_compiled
def _cutoffs(key, wanted, cutoff, room):  # type: ignore[no-untyped-def]
    """The cutoff of the `wanted` smallest of each column, and the `room` for those equal to it.

    By bisection between 0 and the `cutoff` given: it becomes the smallest that is wanted last or, as soon as just as
    many are found at a value or below, this value. Where there are too few, or `cutoff` is -1, it stays as it is.
    """
    rows, n = key.shape
    whole = rows - rows % 4
    low, middle, found = np.empty(n, np.int32), np.empty(n, np.int32), room
    for j in range(n):
        low[j] = min(cutoff[j], 0)
    undecided = _ONE
    while undecided:
        for j in range(n):
            middle[j] = low[j] + ((cutoff[j] - low[j]) >> _ONE)
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
            cutoff[j] = middle[j] if found[j] >= wanted[j] else cutoff[j]
            low[j] = low[j] if found[j] > wanted[j] else middle[j] + np.int32(found[j] < wanted[j])
            undecided |= np.int32(low[j] < cutoff[j])
    for j in range(n):
        room[j] = wanted[j]
    for k in range(rows):
        own = key[k]
        for j in range(n):
            room[j] -= np.int32(own[j] < cutoff[j])


@_compiled
def _at_most(key, bound, chosen, at):  # type: ignore[no-untyped-def]
    """Copy each column's keys up to its bound into `chosen`, (slots, n), and their rows into `at`; returns whether all
    fit.

    The slots left over are as if dead.
    """
    slots, n = chosen.shape
    found, is_one = np.zeros(n, np.int32), np.empty(n, np.uint8)
    eight_are = is_one.view(np.uint64)  # n is a multiple of eight; mostly none of them is
    for s in range(slots):
        own = chosen[s]
        for j in range(n):
            own[j] = _GONE
    for k in range(key.shape[0]):
        own = key[k]
        for j in range(n):
            is_one[j] = own[j] <= bound[j]
        for eight in range(len(eight_are)):
            if eight_are[eight]:
                for j in range(8 * eight, 8 * eight + 8):
                    if is_one[j]:
                        if found[j] == slots:
                            return False
                        chosen[found[j], j], at[found[j], j] = own[j], k
                        found[j] += _ONE
    return True


@_compiled
def _competitors(key, low, size, wanted, most, cutoff, room):  # type: ignore[no-untyped-def]
    """The candidates for the `wanted` smallest of each column: keys, none above `cutoff`, and rows, in order.

    A column's w-th smallest minimum is no less than its w-th smallest key, and little else lies below it. Where that is
    still too much, or groups are too small to tell, all keys compete.
    """
    rows, n = key.shape
    if size >= _SMALL:
        _cutoffs(low, wanted, cutoff, room)
        slots = 3 * most + 16  # a fraction more is the rule; equals by the thousand are not
        chosen, at = np.empty((slots, n), np.int32), np.empty((slots, n), np.int32)
        if _at_most(key, cutoff, chosen, at):
            return chosen, at
    at = np.empty((rows, n), np.int32)
    for k in range(rows):
        at[k] = k
    return key, at


@_compiled
def kernels(bits_KWC, alive_KWC, count, groups, others):  # type: ignore[no-untyped-def]
    """Of the K / groups kernels that read an input channel the `count` weakest die, ordered as in `window`.

    Returns how many weights live.

    Args:
        bits_KWC: magnitudes and signs, contiguous; changed in place, like all others.
        alive_KWC: likewise.
        count: how many are to be gone of each channel's.
        groups: of the convolution.
        others: a tuple of one or more arrays like `bits_KWC`, zeroed where a kernel dies.
    """
    K, W, C = bits_KWC.shape
    rows = K // groups
    width = -(-C // (-(-C // _WIDE) * 8)) * 8  # in parts as even as may be, of whole eights
    missing_C = np.empty(C, np.int32)
    key = np.empty((rows, width), np.int32)
    wanted, cutoff, room = np.empty(width, np.int32), np.empty(width, np.int32), np.empty(width, np.int32)
    living = 0
    for first in range(0, K, rows):
        living += _missing(alive_KWC, first, rows, rows - count, missing_C)
        for start in range(0, C, width):
            n = min(width, C - start)
            most = 0
            for j in range(width):
                wanted[j] = max(missing_C[start + j], 0) if j < n else 0
                cutoff[j] = _GONE - _ONE if wanted[j] else _NEVER
                most = max(most, wanted[j])
            if most == 0:
                continue
            size = max(1, rows // (_SPARE * most))
            low = np.full((-(-rows // size), width), _GONE)
            _scores(bits_KWC, alive_KWC, first, start, n, key, low, size)
            chosen, at = _competitors(key, low, size, wanted, most, cutoff, room)
            _cutoffs(chosen, wanted, cutoff, room)
            for s in range(len(chosen)):
                own = chosen[s]
                for j in range(n):
                    if own[j] > cutoff[j]:
                        continue
                    if own[j] == cutoff[j]:
                        if room[j] == 0:
                            continue
                        room[j] -= _ONE
                    k, c = first + at[s, j], start + j
                    for i in range(W):
                        living -= alive_KWC[k, i, c]
                        alive_KWC[k, i, c] = 0
                        bits_KWC[k, i, c] = 0
                        for other in others:
                            other[k, i, c] = 0
    return living


@_compiled
def _strongest(key_I):  # type: ignore[no-untyped-def]
    """The index of the largest live key, of equals the last; -1 where all is dead."""
    best, at = _NEVER, _NEVER
    for i in range(len(key_I)):
        best = max(best, key_I[i] if key_I[i] != _GONE else _NEVER)
    for i in range(len(key_I)):
        at = max(at, np.int32(i) if key_I[i] == best else _NEVER)
    return at


@_compiled
def _group_minima(key_I, low_G):  # type: ignore[no-untyped-def]
    """The smallest of each `GLANCE` keys."""
    for g in range(len(low_G)):
        own, low = key_I[g * GLANCE : (g + 1) * GLANCE], _GONE
        for i in range(len(own)):
            low = min(low, own[i])
        low_G[g] = low


@_compiled
def weigh(bits_OI, alive_OI, low_OG, strongest_O):  # type: ignore[no-untyped-def]
    """Prepare some neurons of a linear layer for `lightest`. Returns the number of their live weights.

    -1 where one of them is NaN or inf.

    Args:
        bits_OI: magnitudes and signs, contiguous.
        alive_OI: likewise.
        low_OG: becomes the smallest live magnitude of each `GLANCE` weights that is no neuron's strongest.
        strongest_O: becomes the place of each neuron's strongest live weight, of equals the last; -1 where all is dead.
    """
    key_I = np.full(low_OG.shape[1] * GLANCE, _GONE)
    living = 0
    for o in range(len(bits_OI)):
        if not finite(bits_OI[o]):
            return -1
        living += _keys(bits_OI[o], alive_OI[o], key_I)
        strongest_O[o] = _strongest(key_I)
        if strongest_O[o] >= 0:
            key_I[strongest_O[o]] = _GONE  # does not compete
        _group_minima(key_I, low_OG[o])
    return living


@_compiled
def _cutoff(key_N, wanted, high):  # type: ignore[no-untyped-def]
    """As `_cutoffs`, for a single contiguous column: the cutoff and the room."""
    low = np.int32(0)
    while low < high:
        middle = np.int32(low + ((high - low) >> _ONE))
        found = np.int32(0)
        for n in range(len(key_N)):
            found += np.int32(key_N[n] <= middle)
        high = middle if found >= wanted else high
        low = low if found > wanted else np.int32(middle + np.int32(found < wanted))
    below = np.int32(0)
    for n in range(len(key_N)):
        below += np.int32(key_N[n] < high)
    return high, wanted - below


@_compiled
def _competing_weights(bits_OI, alive_OI, low_OG, strongest_O, bound):  # type: ignore[no-untyped-def]
    """The magnitudes up to `bound` of live weights, without each neuron's strongest, and their places in memory."""
    O, I = bits_OI.shape
    most = 0
    for low in low_OG.reshape(-1):
        most += GLANCE * (low <= bound)
    chosen, at = np.empty(most, np.int32), np.empty(most, np.int64)
    found = 0
    for o in range(O):
        for g in range(low_OG.shape[1]):
            if low_OG[o, g] <= bound:
                for i in range(g * GLANCE, min(I, (g + 1) * GLANCE)):
                    own = bits_OI[o, i] & _MAGNITUDE if alive_OI[o, i] else _GONE
                    if own <= bound and i != strongest_O[o]:
                        chosen[found], at[found] = own, o * I + i
                        found += 1
    return chosen[:found], at[:found]


@_compiled
def lightest(bits_OI, alive_OI, low_OG, strongest_O, missing, others):  # type: ignore[no-untyped-def]
    """Of all weights of a linear layer the `missing` smallest die, of equals the lower index first.

    But every neuron's strongest stays. What may be among them is told by the minima of groups, as in `_competitors`.

    Args:
        bits_OI: magnitudes and signs, contiguous; changed in place, like the next and the others.
        alive_OI: likewise.
        low_OG: see `weigh`.
        strongest_O: see `weigh`.
        missing: how many die; so many live beside the strongest.
        others: a tuple of one or more arrays like `bits_OI`, zeroed where a weight dies.
    """
    bound, _ = _cutoff(low_OG.reshape(-1), missing, _GONE - _ONE)
    chosen, at = _competing_weights(bits_OI, alive_OI, low_OG, strongest_O, bound)
    cutoff, room = _cutoff(chosen, missing, bound)
    bits, alive = bits_OI.reshape(-1), alive_OI.reshape(-1)
    for n in range(len(chosen)):
        if chosen[n] > cutoff:
            continue
        if chosen[n] == cutoff:
            if room == 0:
                continue
            room -= 1
        alive[at[n]] = 0
        bits[at[n]] = 0
        for other in others:
            other.reshape(-1)[at[n]] = 0
