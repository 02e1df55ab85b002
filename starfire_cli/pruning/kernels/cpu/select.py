"""Selects the few smallest entries of each column in three passes at the speed of memory (numpy)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_IN_CACHE = 1 << 17  # numbers that are worked on together
_SPARE = 4  # groups for each one wanted: the more, the fewer are put in order in vain
_SHARE = 8  # more than every eighth is found faster by sorting
_ALWAYS = 4


def few(wanted: int, competitors: int) -> bool:
    """Whether `smallest` is faster than sorting for so many of so many."""
    return wanted <= max(_ALWAYS, competitors // _SHARE)


def magnitudes(bits: Array, alive: Array, out: Array | None = None) -> Array:
    """The magnitudes' bits as signed integers: floats without their sign; -1, all bits set, where dead."""
    key: Array = np.bitwise_and(bits, np.iinfo(bits.dtype).max, out=out)
    key |= (alive - np.int8(1)).astype(bits.dtype)
    return key


def unsigned(key: Array) -> Array:
    """The same bits as unsigned integers, in the order that `smallest` expects: the dead are the largest."""
    return key.view(f"u{key.dtype.itemsize}")


def pieces(rows: int, width: int) -> Iterator[slice]:
    """Slices of `rows` rows of `width` numbers that fit a core's own cache."""
    step = max(1, _IN_CACHE // max(1, width))
    return (slice(start, start + step) for start in range(0, rows, step))


def smallest(key_NC: Array, wanted_C: Array) -> Array:
    """Find the `wanted_C` smallest of each column, of equals the first; each column has at least as many live entries.

    The minima of groups of rows are taken: the w-th smallest minimum of a column is no less than its w-th smallest
    number, and little else lies below it. Only that is put in order.

    Args:
        key_NC: see `unsigned`.
        wanted_C: one or more somewhere.

    Returns:
        Where they stand in the flattened array, ascending.
    """
    N, C = key_NC.shape
    most = int(wanted_C.max())
    halvings = max(0, (N // (_SPARE * most)).bit_length() - 1)
    low_GC = _minima(key_NC, halvings)
    bound_C = low_GC.min(0) if most == 1 else np.partition(np.ascontiguousarray(low_GC.T), most - 1)[:, most - 1]
    bound_C = np.minimum(bound_C, np.iinfo(key_NC.dtype).max >> 1)  # no dead ones
    at = np.flatnonzero(key_NC <= bound_C)
    column = (at % C).astype(np.min_scalar_type(C))  # numpy sorts 16 bits much faster than more
    found_C = np.bincount(column, minlength=C)
    if np.array_equal(found_C, wanted_C):
        return at
    order = key_NC.reshape(-1)[at].argsort(kind="stable")
    order = order[column[order].argsort(kind="stable")]  # column by column, each from the smallest, of equals the first
    rank = np.empty_like(order)
    rank[order] = np.arange(len(at)) - np.repeat(found_C.cumsum() - found_C, found_C)
    first: Array = at[rank < wanted_C[column]]
    return first


def _minima(key_NC: Array, halvings: int) -> Array:
    """The minima of disjoint groups of 2 ** `halvings` rows, one in two groups joining another where rows are odd."""
    low_NC = key_NC
    for _ in range(halvings):
        half = len(low_NC) // 2
        if not half:
            break
        joined = np.minimum(low_NC[:half], low_NC[half : 2 * half])
        if len(low_NC) % 2:
            np.minimum(joined[0], low_NC[-1], out=joined[0])
        low_NC = joined
    return low_NC
