"""Triton kernels that find the weakest kernels of each input channel in chunks of a layer; see `channels.py`."""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from starfire_cli.pruning.kernels.gpu.device import (
    _CHUNK,
    _CHUNKS,
    _COUNT,
    _DUE,
    _FIRST,
    _HIGH,
    _IN_WINDOW,
    _INF,
    _INNER,
    _MORE,
    _NAN,
    _ROW,
    _S,
    _STRIDE,
    _TAPS,
    _TARGET,
)
from starfire_cli.pruning.kernels.gpu.table import Row

_RIVALS = tl.constexpr(int(Row.RIVALS))


@triton.jit
def _share(row, share, WIDE: tl.constexpr):
    """The first input channel of a share of a layer, which has `WIDE` of them, and the first kernel of their group."""
    to_a_group = tl.cdiv(tl.load(row + _INNER).to(tl.int32), WIDE)
    return (share % to_a_group) * WIDE, (share // to_a_group) * tl.load(row + _RIVALS).to(tl.int32)


@triton.jit
def _looked_at(due, number):
    """Whether a convolution's kernels are looked at here: some of them are due, or nothing is but to count."""
    in_window = tl.load(due + number * _DUE + _IN_WINDOW)
    return (in_window == 0) | ((in_window > 0) & (tl.load(due + number * _DUE + _COUNT) > 0))


@triton.jit
def _weaker(key, k, cut, last, low, at, FRESH: tl.constexpr):
    """(`low`, `at`), or kernel k if it lives, is weaker, and (unless `FRESH`) comes after (`cut`, `last`)."""
    less = (key >= 0) & (key < low)  # of equals the first
    if not FRESH:
        less &= (key > cut) | ((key == cut) & (k > last))
    return tl.where(less, key, low), tl.where(less, k, at)


@triton.jit
def _strides(tensor):
    """Of a tensor in the table, by k, c, r, s."""
    at = tensor + _STRIDE
    along_k, along_c = tl.load(at).to(tl.int32), tl.load(at + 1).to(tl.int32)
    return along_k, along_c, tl.load(at + 2).to(tl.int32), tl.load(at + 3).to(tl.int32)


@triton.jit
def _fours(
    weight,
    start,
    stop,
    first,
    at_c,
    cuts,
    lasts,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    FRESH: tl.constexpr,
):
    """Of kernels `start` to `stop` and channels c to c + 3 of each element of `at_c` the weakest that comes next.

    The four lie side by side in memory, 32 bits each, and so do their masks: what is done with an address or with a
    mask is done once for them. Kernels have 1 or 3 x 3 weights (`TAPS`).

    Returns their keys and numbers, four each; and if it is `FRESH` the largest |w|'s bits, how many of their kernels
    live, a byte each, and how many of all their weights.
    """
    numbers, masks = tl.load(weight).to(tl.pointer_type(tl.int32)), tl.load(weight + _TARGET)
    masks = masks.to(tl.pointer_type(tl.int8))
    w_k, _, w_r, w_s = _strides(weight)
    a_k, _, a_r, a_s = _strides(weight + _TARGET)
    at0 = at_c * 0
    low0 = at0 + 0x7FFFFFFF
    low1, low2, low3, at1, at2, at3 = low0, low0, low0, at0, at0, at0
    largest, kernels, weights = at0, at0, at0
    for block in range(start, stop, ROWS):
        for row in tl.static_range(ROWS):
            k = tl.minimum(block + row, stop - 1)
            key0 = at_c * 0 - 1
            key1, key2, key3 = key0, key0, key0
            some, many = at_c * 0, at_c * 0  # a byte for each of the four
            for tap in tl.static_range(TAPS):
                at_w = (first + k) * w_k + (tap // 3 * w_r + tap % 3 * w_s)
                at_a = (first + k) * a_k + (tap // 3 * a_r + tap % 3 * a_s)
                two = (numbers + at_w + at_c).to(tl.pointer_type(tl.int64))
                left, right = tl.load(two), tl.load(two + 1)
                life = tl.load((masks + at_a + at_c).to(tl.pointer_type(tl.int32)))
                bits0, bits1 = left.to(tl.int32) & 0x7FFFFFFF, (left >> 32).to(tl.int32) & 0x7FFFFFFF
                bits2, bits3 = right.to(tl.int32) & 0x7FFFFFFF, (right >> 32).to(tl.int32) & 0x7FFFFFFF
                key0 = tl.maximum(key0, tl.where((life & 0xFF) == 1, bits0, -1))
                key1 = tl.maximum(key1, tl.where((life & 0xFF00) == 0x100, bits1, -1))
                key2 = tl.maximum(key2, tl.where((life & 0xFF0000) == 0x10000, bits2, -1))
                key3 = tl.maximum(key3, tl.where((life >> 24) == 1, bits3, -1))
                if FRESH:
                    largest = tl.maximum(largest, tl.maximum(tl.maximum(bits0, bits1), tl.maximum(bits2, bits3)))
                    some |= life & 0x01010101
                    many += life & 0x01010101
            if FRESH:
                there = tl.where(block + row < stop, -1, 0)
                kernels += some & there
                many = (many & 0x00FF00FF) + ((many >> 8) & 0x00FF00FF)
                weights += ((many & 0xFFFF) + (many >> 16)) & there
            low0, at0 = _weaker(key0, k, cuts[0], lasts[0], low0, at0, FRESH)
            low1, at1 = _weaker(key1, k, cuts[1], lasts[1], low1, at1, FRESH)
            low2, at2 = _weaker(key2, k, cuts[2], lasts[2], low2, at2, FRESH)
            low3, at3 = _weaker(key3, k, cuts[3], lasts[3], low3, at3, FRESH)
    return low0, low1, low2, low3, at0, at1, at2, at3, largest, kernels, weights


@triton.jit
def _one(numbers, masks, key, largest, many, FRESH: tl.constexpr, BYTES: tl.constexpr):
    """A weight more of some kernels: their keys, and if it is `FRESH` the largest |w|'s bits and the mask's sum."""
    bits, life = tl.load(numbers).to(key.dtype) & (2 ** (8 * BYTES - 1) - 1), tl.load(masks)
    if FRESH:
        largest = tl.maximum(largest, bits)
        many += life
    return tl.maximum(key, tl.where(life == 1, bits, -1)), largest, many


@triton.jit
def _ones(
    weight,
    start,
    stop,
    first,
    at_c,
    taps,
    S,
    cut,
    last,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    FRESH: tl.constexpr,
    BYTES: tl.constexpr,
):
    """As `_fours`, of single channels wherever they lie, of any size. `TAPS`: 1, 9 (3 x 3) or, for any, 0."""
    whole = tl.int16 if BYTES == 2 else tl.int32 if BYTES == 4 else tl.int64
    w_k, w_c, w_r, w_s = _strides(weight)
    a_k, a_c, a_r, a_s = _strides(weight + _TARGET)
    numbers = tl.load(weight).to(tl.pointer_type(whole)) + at_c * w_c
    masks = tl.load(weight + _TARGET).to(tl.pointer_type(tl.int8)) + at_c * a_c
    none: tl.constexpr = 2 ** (31 if BYTES < 8 else 63) - 1
    low, at, largest = cut * 0 + none, last * 0, cut * 0
    kernels, weights = last * 0, last * 0
    for block in range(start, stop, ROWS):
        for row in tl.static_range(ROWS):
            k = tl.minimum(block + row, stop - 1)
            key, many = cut * 0 - 1, last * 0
            if TAPS > 0:
                for tap in tl.static_range(TAPS):
                    at_w = (first + k) * w_k + (tap // 3 * w_r + tap % 3 * w_s)
                    at_a = (first + k) * a_k + (tap // 3 * a_r + tap % 3 * a_s)
                    key, largest, many = _one(numbers + at_w, masks + at_a, key, largest, many, FRESH, BYTES)
            else:
                for tap in range(taps):
                    at_w = (first + k) * w_k + (tap // S * w_r + tap % S * w_s)
                    at_a = (first + k) * a_k + (tap // S * a_r + tap % S * a_s)
                    key, largest, many = _one(numbers + at_w, masks + at_a, key, largest, many, FRESH, BYTES)
            if FRESH:
                there = block + row < stop
                kernels += (there & (key >= 0)).to(tl.int32)
                weights += tl.where(there, many, 0)  # where there is a 2, nobody asks
            low, at = _weaker(key, k, cut, last, low, at, FRESH)
    return low, at, largest, kernels, weights


@triton.jit
def _put_fours(found, low, at, column):
    """Keys and numbers as `_fours` returns them, to where the first channel's belong."""
    for one in tl.static_range(4):
        tl.store(low + column + one, found[one])
        tl.store(at + column + one, found[4 + one])


@triton.jit
def _search_fours(
    weight,
    start,
    stop,
    first,
    c,
    inner,
    more,
    infinity,
    count,
    low,
    at,
    dead,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The search of `weakest`, four channels at once; the dead weights of the four are counted in the first."""
    at_c, column, unused = tl.minimum(c, inner - 4), 4 * tl.arange(0, WIDE // 4), (c, c, c, c)
    found = _fours(weight, start, stop, first, at_c, unused, unused, TAPS, ROWS, True)
    _put_fours(found, low, at, column)
    if tl.max(found[8], 0) >= infinity:
        tl.store(count, _NAN)
    here, kernels = tl.where(c < inner, stop - start, 0), tl.where(c < inner, found[9], 0)
    tl.store(dead + column, here - (kernels & 0xFF))
    tl.store(dead + column + 1, here - ((kernels >> 8) & 0xFF))
    tl.store(dead + column + 2, here - ((kernels >> 16) & 0xFF))
    tl.store(dead + column + 3, here - (kernels >> 24))
    tl.store(dead + WIDE + column, 4 * TAPS * here - tl.where(c < inner, found[10], 0))
    for other in tl.static_range(1, 4):
        tl.store(dead + WIDE + column + other, c * 0)
    cut0, cut1, cut2, cut3, last0, last1, last2, last3, _, _, _ = found
    for time in range(1, more):
        cuts, lasts = (cut0, cut1, cut2, cut3), (last0, last1, last2, last3)
        found = _fours(weight, start, stop, first, at_c, cuts, lasts, TAPS, ROWS, False)
        _put_fours(found, low + time * WIDE, at + time * WIDE, column)
        cut0, cut1, cut2, cut3, last0, last1, last2, last3, _, _, _ = found


@triton.jit
def _search_ones(
    weight,
    start,
    stop,
    first,
    c,
    inner,
    taps,
    S,
    more,
    infinity,
    count,
    low,
    at,
    dead,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    BYTES: tl.constexpr,
):
    """The search of `weakest`, channel by channel."""
    at_c, column = tl.minimum(c, inner - 1), tl.arange(0, WIDE)
    cut, last = (c * 0).to(tl.int64 if BYTES == 8 else tl.int32), c * 0
    cut, last, largest, kernels, weights = _ones(
        weight, start, stop, first, at_c, taps, S, cut, last, TAPS, ROWS, True, BYTES
    )
    if tl.max(largest, 0) >= infinity:
        tl.store(count, _NAN)
    tl.store(dead + column, tl.where(c < inner, stop - start - kernels, 0))
    tl.store(dead + WIDE + column, tl.where(c < inner, (stop - start) * taps - weights, 0))
    tl.store(low + column, cut)
    tl.store(at + column, last)
    for time in range(1, more):
        cut, last, _, _, _ = _ones(weight, start, stop, first, at_c, taps, S, cut, last, TAPS, ROWS, False, BYTES)
        tl.store(low + time * WIDE + column, cut)
        tl.store(at + time * WIDE + column, last)


@triton.jit
def weakest(
    rows,
    targets,
    programs,
    due,
    counts,
    lows,
    ats,
    deads,
    BYTES: tl.constexpr,
    FEW: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    FOURS: tl.constexpr,
):
    """Of some of the kernels that read an input channel: the weakest live ones, and how much is dead.

    A program has `WIDE` channels, and of the kernels of a group a chunk of `Row.HIGH`; the next program has the
    channels beside them in memory. It writes to its row of `lows` and `ats`, (chunks, FEW, WIDE), the keys in rising
    order and the kernels' numbers in their group, as many as `Due.MORE` says; and to `deads`, int32, (chunks, 2, WIDE),
    how many kernels are dead and, in all channels together, how many weights. A share's chunks have successive rows.
    Reads each weight once, and again for each but the first that is due; looks for NaN and inf.

    It is meant for one warp, whose threads need not know what the others have found. The loads of `ROWS` kernels, or of
    all taps, are under way at the same time, and there are no longer ways than that without a loop: a GPU would have to
    fetch each of their instructions from afar. Tensors have one dimension, so that neighbours in them are neighbours in
    memory whatever layout Triton chooses; of two dimensions its versions do not agree.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    if _looked_at(due, number) & (tl.load(counts + number) >= 0):
        row, part = rows + number * _ROW, tl.load(programs + 2 * tl.program_id(0) + 1)
        share, one = (part >> 32).to(tl.int32), part.to(tl.int32)
        inner, rivals = tl.load(row + _INNER).to(tl.int32), tl.load(row + _RIVALS).to(tl.int32)
        taps, S, high = tl.load(row + _TAPS).to(tl.int32), tl.load(row + _S).to(tl.int32), tl.load(row + _HIGH)
        w, more = targets + tl.load(row + _FIRST) * _TARGET, tl.load(due + number * _DUE + _MORE).to(tl.int32)
        chunk = (tl.load(row + _CHUNK) + share * tl.load(row + _CHUNKS)).to(tl.int32) + one
        start = one * high.to(tl.int32)
        stop, inf = tl.minimum(start + high.to(tl.int32), rivals), tl.load(row + _INF)
        c0, first = _share(row, share, WIDE)
        low, at, dead = lows + chunk * FEW * WIDE, ats + chunk * FEW * WIDE, deads + 2 * chunk * WIDE
        n = counts + number
        if FOURS:
            c = c0 + 4 * tl.arange(0, WIDE // 4)
            if taps == 1:
                _search_fours(w, start, stop, first, c, inner, more, inf, n, low, at, dead, 1, ROWS, WIDE)
            else:
                _search_fours(w, start, stop, first, c, inner, more, inf, n, low, at, dead, 9, 1, WIDE)
        else:
            c = c0 + tl.arange(0, WIDE)
            if taps == 1:
                _search_ones(w, start, stop, first, c, inner, taps, S, more, inf, n, low, at, dead, 1, 4, WIDE, BYTES)
            elif (taps == 9) & (S == 3):
                _search_ones(w, start, stop, first, c, inner, taps, S, more, inf, n, low, at, dead, 9, 1, WIDE, BYTES)
            else:
                _search_ones(w, start, stop, first, c, inner, taps, S, more, inf, n, low, at, dead, 0, 1, WIDE, BYTES)
