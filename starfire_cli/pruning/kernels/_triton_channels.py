"""On the device: of the kernels that read an input channel, which go? See `_triton_device.py`.

Step by step few go, and then `weakest` finds in chunks of a layer as many candidates as can be due and `take` takes the
weakest of them all. How many can be due is what the host knows of the call before (`Due.MORE`); where more are, because
masks were changed by others or an era takes great steps, `take` leaves the channels to `channels`.
"""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from starfire_cli.pruning.kernels._triton_device import (
    _CHUNK,
    _CHUNKS,
    _COUNT,
    _DUE,
    _END,
    _FIRST,
    _HIGH,
    _IN_WINDOW,
    _INF,
    _INNER,
    _MORE,
    _NAN,
    _ROW,
    _S,
    _SIDE_BY_SIDE,
    _STRIDE,
    _TAPS,
    _TARGET,
    _key,
    _kill,
    _life,
)
from starfire_cli.pruning.kernels._triton_table import Row

_RIVALS = tl.constexpr(int(Row.RIVALS))
_MANY = tl.constexpr(24)  # kernels of a channel that are looked for one by one; for more, a cutoff is bisected


@triton.jit
def _kernels(weight, first, rivals, k, c, inner, taps, S, BYTES: tl.constexpr):
    """The keys of whole kernels, those of their strongest live weights, -1 where all is dead; and which there are.

    What there is not is read elsewhere: loads under as many different masks would have to wait for one another.
    """
    there = (k < rivals) & (c < inner)
    k, c = first + tl.minimum(k, rivals - 1), tl.minimum(c, inner - 1)
    strongest = _key(weight, k, c, 0, S, BYTES)
    for tap in range(1, taps):
        strongest = tl.maximum(strongest, _key(weight, k, c, tap, S, BYTES))
    return tl.where(there, strongest, -1), there


@triton.jit
def _weakest(
    weight, first, rivals, c, inner, taps, S, cut, last, BYTES: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr
):
    """Of each column's live kernels that come after number `last` with key `cut`, the first: key and number, (1, WIDE).

    With it how many are dead. The largest key where none is left.
    """
    none: tl.constexpr = 2 ** (31 if BYTES < 8 else 63) - 1
    low = tl.full([HIGH, WIDE], none, cut.dtype)
    at = tl.full([HIGH, WIDE], 0, tl.int32)
    dead = tl.zeros([HIGH, WIDE], tl.int32)
    for start in range(0, rivals, HIGH):
        k = start + tl.arange(0, HIGH)[:, None]
        key, there = _kernels(weight, first, rivals, k, c, inner, taps, S, BYTES)
        dead += (there & (key < 0)).to(tl.int32)
        less = (key >= 0) & ((key > cut) | ((key == cut) & (k > last))) & (key < low)
        at = tl.where(less, k, at)
        low = tl.where(less, key, low)
    lowest = tl.min(low, 0, keep_dims=True)
    at_lowest = tl.min(tl.where(low == lowest, at, rivals), 0, keep_dims=True)
    return lowest, at_lowest, tl.sum(dead, 0, keep_dims=True)


@triton.jit
def _smaller(
    weight,
    first,
    rivals,
    c,
    inner,
    taps,
    S,
    cut,
    trial,
    TIED: tl.constexpr,
    BYTES: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of each column how many keys are smaller than `trial`; with `TIED`, numbers of keys equal to `cut`. (1, WIDE)."""
    many = tl.zeros([HIGH, WIDE], tl.int32)
    for start in range(0, rivals, HIGH):
        k = start + tl.arange(0, HIGH)[:, None]
        key, there = _kernels(weight, first, rivals, k, c, inner, taps, S, BYTES)
        smaller = ((key == cut) & (k < trial)) if TIED else key < trial
        many += (there & smaller).to(tl.int32)
    return tl.sum(many, 0, keep_dims=True)


@triton.jit
def _bound(
    weight,
    first,
    rivals,
    c,
    inner,
    taps,
    S,
    cut,
    at_most,
    BITS: tl.constexpr,
    TIED: tl.constexpr,
    BYTES: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """For each column the largest number below 2^BITS than which at most `at_most` are smaller (see `_smaller`)."""
    found = cut * 0
    one = found + 1
    for bit in range(BITS):
        trial = found | (one << (BITS - 1 - bit))
        many = _smaller(weight, first, rivals, c, inner, taps, S, cut, trial, TIED, BYTES, HIGH, WIDE)
        found = tl.where(many <= at_most, trial, found)
    return found


@triton.jit
def _share(row, share, WIDE: tl.constexpr):
    """What input channels a share of a layer has, (1, WIDE), and the first kernel of their group."""
    to_a_group = tl.cdiv(tl.load(row + _INNER).to(tl.int32), WIDE)
    first = (share // to_a_group) * tl.load(row + _RIVALS).to(tl.int32)
    return (share % to_a_group) * WIDE + tl.arange(0, WIDE)[None, :], first


@triton.jit
def _looked_at(due, number):
    """Whether a convolution's kernels are looked at here: some of them are due, or nothing is but to count."""
    in_window = tl.load(due + number * _DUE + _IN_WINDOW)
    return (in_window == 0) | ((in_window > 0) & (tl.load(due + number * _DUE + _COUNT) > 0))


@triton.jit
def _next(
    weight,
    start,
    stop,
    first,
    c,
    inner,
    taps,
    S,
    cut,
    last,
    BYTES: tl.constexpr,
    ROWS: tl.constexpr,
    FRESH: tl.constexpr,
):
    """Of kernels `start` to `stop` of channels `c`, (1, WIDE), the weakest live one that comes after (`cut`, `last`).

    Its key, the largest there is if there is none, and number. If `FRESH` any comes after; and then the largest |w|'s
    bits, how many kernels live and how many weights. What is looked at together is a thread's own, and few operations a
    weight are all that this takes: so the addresses are worked out here. What there is not is read elsewhere, see
    `_kernels`.
    """
    alive = weight + _TARGET
    w_k, w_c = tl.load(weight + _STRIDE).to(tl.int32), tl.load(weight + _STRIDE + 1).to(tl.int32)
    w_r, w_s = tl.load(weight + _STRIDE + 2).to(tl.int32), tl.load(weight + _STRIDE + 3).to(tl.int32)
    a_k, a_c = tl.load(alive + _STRIDE).to(tl.int32), tl.load(alive + _STRIDE + 1).to(tl.int32)
    a_r, a_s = tl.load(alive + _STRIDE + 2).to(tl.int32), tl.load(alive + _STRIDE + 3).to(tl.int32)
    whole = tl.int16 if BYTES == 2 else tl.int32 if BYTES == 4 else tl.int64
    numbers, masks = tl.load(weight).to(tl.pointer_type(whole)), tl.load(alive).to(tl.pointer_type(tl.int8))
    none: tl.constexpr = 2 ** (31 if BYTES < 8 else 63) - 1
    unsigned: tl.constexpr = tl.uint64 if BYTES == 8 else tl.uint32
    low, at = (cut * 0 - 1).to(unsigned, bitcast=True), last * 0
    largest, kernels, weights = cut * 0, last * 0, last * 0
    at_c, R = tl.minimum(c, inner - 1), taps // S
    for block in range(start, stop, ROWS):
        k = block + tl.arange(0, ROWS)[:, None]
        there, k = k < stop, tl.minimum(k, stop - 1)
        key = tl.full([ROWS, c.shape[1]], -1, cut.dtype)
        for r in range(R):
            for s in range(S):
                at_w = (first + k) * w_k + (r * w_r + s * w_s) + at_c * w_c
                at_a = (first + k) * a_k + (r * a_r + s * a_s) + at_c * a_c
                bits, life = tl.load(numbers + at_w).to(cut.dtype) & (2 ** (8 * BYTES - 1) - 1), tl.load(masks + at_a)
                key = tl.maximum(key, tl.where(life == 1, bits, -1))
                if FRESH:
                    largest = tl.maximum(largest, tl.max(bits, 0, keep_dims=True))
                    weights += tl.sum(tl.where(there, life.to(tl.int32), 0), 0, keep_dims=True)  # 2 where nobody asks
        if FRESH:
            kernels += tl.sum((there & (key >= 0)).to(tl.int32), 0, keep_dims=True)
        else:
            key = tl.where((key > cut) | ((key == cut) & (k > last)), key, -1)
        rank = key.to(unsigned, bitcast=True)  # what does not live comes last
        lowest = tl.min(rank, 0, keep_dims=True)
        at_lowest = tl.min(tl.where(rank == lowest, k, 0x7FFFFFFF), 0, keep_dims=True)
        at = tl.where(lowest < low, at_lowest, at)  # of equals the first
        low = tl.minimum(low, lowest)
    key = low.to(cut.dtype, bitcast=True)
    return tl.where(key < 0, none, key), at, largest, kernels, weights


@triton.jit
def _lowest(key, k, low, at):
    """The smaller of `low` and the smallest of a column of live keys, and its number; of equals the first."""
    rank = key.to(tl.uint32, bitcast=True)
    lowest = tl.min(rank, 0, keep_dims=True)
    at_lowest = tl.min(tl.where(rank == lowest, k, 0x7FFFFFFF), 0, keep_dims=True)
    return tl.minimum(low, lowest), tl.where(lowest < low, at_lowest, at)


@triton.jit
def _first_of_four(
    weight, start, stop, first, c, inner, taps, S, infinity, count, low_at, at_at, dead_at, ROWS: tl.constexpr
):
    """What `_next` finds if it is fresh, put where it belongs; for channels c to c + 3 of each column of `c`.

    These lie side by side in memory, 32 bits each, and so do their masks. It takes a third of the operations: all that
    is done with an address or with a mask is done once for the four. The dead weights of all are counted in the first.
    """
    alive = weight + _TARGET
    w_k, w_r = tl.load(weight + _STRIDE).to(tl.int32), tl.load(weight + _STRIDE + 2).to(tl.int32)
    a_k, a_r = tl.load(alive + _STRIDE).to(tl.int32), tl.load(alive + _STRIDE + 2).to(tl.int32)
    w_s, a_s = tl.load(weight + _STRIDE + 3).to(tl.int32), tl.load(alive + _STRIDE + 3).to(tl.int32)
    numbers, masks = tl.load(weight).to(tl.pointer_type(tl.int32)), tl.load(alive).to(tl.pointer_type(tl.int8))
    low0 = (c * 0 - 1).to(tl.uint32, bitcast=True)
    low1, low2, low3 = low0, low0, low0
    at0, at1, at2, at3 = c * 0, c * 0, c * 0, c * 0
    largest, kernels, weights = c * 0, c * 0, c * 0  # `kernels`: a byte for each of the four
    at_c, R = tl.minimum(c, inner - 4), taps // S
    for block in range(start, stop, ROWS):
        k = block + tl.arange(0, ROWS)[:, None]
        there, k = k < stop, tl.minimum(k, stop - 1)
        key0 = tl.full([ROWS, c.shape[1]], -1, tl.int32)
        key1, key2, key3 = key0, key0, key0
        some, many = key0 * 0, key0 * 0  # a byte for each
        for r in range(R):
            for s in range(S):
                two = (numbers + ((first + k) * w_k + (r * w_r + s * w_s) + at_c)).to(tl.pointer_type(tl.int64))
                left, right = tl.load(two), tl.load(two + 1)
                life = tl.load((masks + ((first + k) * a_k + (r * a_r + s * a_s) + at_c)).to(tl.pointer_type(tl.int32)))
                bits0, bits1 = left.to(tl.int32) & 0x7FFFFFFF, (left >> 32).to(tl.int32) & 0x7FFFFFFF
                bits2, bits3 = right.to(tl.int32) & 0x7FFFFFFF, (right >> 32).to(tl.int32) & 0x7FFFFFFF
                key0 = tl.maximum(key0, tl.where((life & 0xFF) == 1, bits0, -1))
                key1 = tl.maximum(key1, tl.where((life & 0xFF00) == 0x100, bits1, -1))
                key2 = tl.maximum(key2, tl.where((life & 0xFF0000) == 0x10000, bits2, -1))
                key3 = tl.maximum(key3, tl.where((life >> 24) == 1, bits3, -1))
                both = tl.maximum(tl.maximum(bits0, bits1), tl.maximum(bits2, bits3))
                largest = tl.maximum(largest, tl.max(both, 0, keep_dims=True))
                some |= life & 0x01010101
                many += life & 0x01010101
        kernels += tl.sum(tl.where(there, some, 0), 0, keep_dims=True)
        many = (many & 0x00FF00FF) + ((many >> 8) & 0x00FF00FF)
        weights += tl.sum(tl.where(there, (many & 0xFFFF) + (many >> 16), 0), 0, keep_dims=True)
        low0, at0 = _lowest(key0, k, low0, at0)
        low1, at1 = _lowest(key1, k, low1, at1)
        low2, at2 = _lowest(key2, k, low2, at2)
        low3, at3 = _lowest(key3, k, low3, at3)
    if tl.max(tl.max(largest, 1), 0) >= infinity:
        tl.store(count, _NAN)
    WIDE: tl.constexpr = 4 * c.shape[1]
    column = 4 * tl.arange(0, c.shape[1])[None, :]
    _put(low_at, at_at, dead_at, column, low0, at0, tl.where(c < inner, stop - start - (kernels & 0xFF), 0))
    _put(low_at, at_at, dead_at, column + 1, low1, at1, tl.where(c < inner, stop - start - ((kernels >> 8) & 0xFF), 0))
    _put(low_at, at_at, dead_at, column + 2, low2, at2, tl.where(c < inner, stop - start - ((kernels >> 16) & 0xFF), 0))
    _put(low_at, at_at, dead_at, column + 3, low3, at3, tl.where(c < inner, stop - start - (kernels >> 24), 0))
    for other in range(4):
        dead = tl.where((c < inner) & (other == 0), 4 * (stop - start) * taps - weights, 0)
        tl.store(dead_at + WIDE + column + other, dead)


@triton.jit
def _put(low_at, at_at, dead_at, column, low, at, dead):
    key = low.to(tl.int32, bitcast=True)
    tl.store(low_at + column, tl.where(key < 0, 0x7FFFFFFF, key))
    tl.store(at_at + column, at)
    tl.store(dead_at + column, dead)


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
):
    """Of some of the kernels that read an input channel: the weakest live ones, and how much is dead.

    A program has `WIDE` channels, and of the kernels of a group a chunk of `Row.HIGH`; the next program has the
    channels beside them in memory. It writes to its row of `lows` and `ats`, (chunks, FEW, WIDE), the keys in rising
    order and the kernels' numbers in their group, as many as `Due.MORE` says; and to `deads`, int32, (chunks, 2, WIDE),
    how many kernels are dead and how many weights. A share's chunks have successive rows. Reads each weight once, and
    again for each but the first that is due; looks for NaN and inf.

    It is meant for one warp, whose threads need not know what the others have found. It is a short loop on purpose: a
    long way without one costs more, since a GPU has to fetch each of its instructions from afar.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    if _looked_at(due, number) & (tl.load(counts + number) >= 0):
        row, part = rows + number * _ROW, tl.load(programs + 2 * tl.program_id(0) + 1)
        share, one = (part >> 32).to(tl.int32), part.to(tl.int32)
        inner, rivals = tl.load(row + _INNER).to(tl.int32), tl.load(row + _RIVALS).to(tl.int32)
        taps, S, high = tl.load(row + _TAPS).to(tl.int32), tl.load(row + _S).to(tl.int32), tl.load(row + _HIGH)
        weight, more = targets + tl.load(row + _FIRST) * _TARGET, tl.load(due + number * _DUE + _MORE).to(tl.int32)
        chunk = (tl.load(row + _CHUNK) + share * tl.load(row + _CHUNKS)).to(tl.int32) + one
        start = one * high.to(tl.int32)
        stop, infinity = tl.minimum(start + high.to(tl.int32), rivals), tl.load(row + _INF)
        c, first = _share(row, share, WIDE)
        column = tl.arange(0, WIDE)[None, :]
        low_at, at_at = lows + chunk * FEW * WIDE, ats + chunk * FEW * WIDE
        dead_at, count = deads + 2 * chunk * WIDE, counts + number
        cut, last = column.to(lows.dtype.element_ty) * 0, column * 0
        if (BYTES == 4) & (tl.load(row + _SIDE_BY_SIDE) > 0):
            to_a_group = tl.cdiv(inner, WIDE)
            four = (share % to_a_group) * WIDE + 4 * tl.arange(0, WIDE // 4)[None, :]
            _first_of_four(
                weight, start, stop, first, four, inner, taps, S, infinity, count, low_at, at_at, dead_at, ROWS
            )
        else:
            key, k, largest, kernels, weights = _next(
                weight, start, stop, first, c, inner, taps, S, cut, last, BYTES, ROWS, True
            )
            if tl.max(tl.max(largest, 1), 0) >= infinity:
                tl.store(count, _NAN)
            tl.store(dead_at + column, tl.where(c < inner, stop - start - kernels, 0))
            tl.store(dead_at + WIDE + column, tl.where(c < inner, (stop - start) * taps - weights, 0))
            tl.store(low_at + column, key)
            tl.store(at_at + column, k)
        if more > 1:
            tl.debug_barrier()  # other threads may have found what this one goes on from
            cut, last = tl.load(low_at + column), tl.load(at_at + column)
            for time in range(1, more):
                cut, last, _, _, _ = _next(weight, start, stop, first, c, inner, taps, S, cut, last, BYTES, ROWS, False)
                tl.store(low_at + time * WIDE + column, cut)
                tl.store(at_at + time * WIDE + column, last)


@triton.jit
def take(
    rows,
    targets,
    programs,
    due,
    counts,
    lows,
    ats,
    deads,
    left,
    BYTES: tl.constexpr,
    FEW: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Take the weakest kernels of those that `weakest` found; equals go by index.

    Where these do not suffice nothing is taken, and `left`, int32, (programs,), is 1. What was dead is counted in any
    case, but where `apply` does it.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    tl.store(left + tl.program_id(0), 0)
    if _looked_at(due, number) & (tl.load(counts + number) >= 0):
        row, share = rows + number * _ROW, tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32)
        inner, taps, S = tl.load(row + _INNER).to(tl.int32), tl.load(row + _TAPS).to(tl.int32), tl.load(row + _S)
        S = S.to(tl.int32)
        begin, end = tl.load(row + _FIRST), tl.load(row + _END)
        what = due + number * _DUE
        count, more = tl.load(what + _COUNT).to(tl.int32), tl.load(what + _MORE).to(tl.int32)
        chunks = tl.load(row + _CHUNKS).to(tl.int32)
        c, first = _share(row, share, WIDE)
        chunk = tl.load(row + _CHUNK).to(tl.int32) + share * chunks
        depth, column = tl.arange(0, DEPTH)[:, None], tl.arange(0, WIDE)[None, :]
        dead, weights = tl.zeros([DEPTH, WIDE], tl.int32), tl.zeros([DEPTH, WIDE], tl.int32)
        for start in range(0, chunks, DEPTH):
            one, exists = tl.minimum(start + depth, chunks - 1), start + depth < chunks
            here = deads + 2 * (chunk + one) * WIDE + column
            dead += tl.where(exists, tl.load(here), 0)
            weights += tl.where(exists, tl.load(here + WIDE), 0)
        weights = tl.sum(weights, 0, keep_dims=True)  # dead ones
        missing = tl.where(c < inner, count - tl.sum(dead, 0, keep_dims=True), 0)
        most = tl.max(tl.max(missing, 0), 0)
        if most > more:
            tl.store(left + tl.program_id(0), 1)
            most = 0
        none: tl.constexpr = 2 ** (31 if BYTES < 8 else 63) - 1
        cut = tl.full([1, WIDE], -1, lows.dtype.element_ty)
        last = tl.full([1, WIDE], -1, tl.int32)
        for time in range(most):
            low = tl.full([DEPTH, WIDE], none, lows.dtype.element_ty)
            at = tl.full([DEPTH, WIDE], 0x7FFFFFFF, tl.int32)
            for start in range(0, chunks * more, DEPTH):
                one = tl.minimum(start + depth, chunks * more - 1)
                here = ((chunk + one // more) * FEW + one % more) * WIDE + column
                key, k = tl.load(lows + here), tl.load(ats + here)
                less = ((key > cut) | ((key == cut) & (k > last))) & (key < low)
                at = tl.where(less, k, at)
                low = tl.where(less, key, low)
            cut = tl.min(low, 0, keep_dims=True)
            last = tl.min(tl.where(low == cut, at, 0x7FFFFFFF), 0, keep_dims=True)
            goes = (missing > time) & (cut < none)
            k, c_goes = first + tl.where(goes, last, 0), tl.where(goes, c, 0)
            for tap in range(taps):
                life = _life(targets + (begin + 1) * _TARGET, k, c_goes, tap // S, tap % S)
                weights += (goes & (life != 0)).to(tl.int32)
                _kill(targets, begin, end, k, c_goes, tap // S, tap % S, goes)
        if tl.load(due + number * _DUE + _IN_WINDOW) == 0:
            tl.atomic_add(counts + number, tl.sum(tl.sum(weights, 0), 0).to(tl.int64), sem="relaxed")


@triton.jit
def channels(rows, targets, programs, due, counts, left, BYTES: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Take the weakest of the kernels that read an input channel, where `take` left them; equals go by index.

    A program has `WIDE` channels of a group and passes over their kernels `HIGH` at a time: once to find the weakest
    and how many are dead, once for each further one that is due, and once to write.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    if tl.load(left + tl.program_id(0)) > 0:
        row = rows + number * _ROW
        count = tl.load(due + number * _DUE + _COUNT).to(tl.int32)
        inner, rivals = tl.load(row + _INNER).to(tl.int32), tl.load(row + _RIVALS).to(tl.int32)
        taps, S = tl.load(row + _TAPS).to(tl.int32), tl.load(row + _S).to(tl.int32)
        begin, end = tl.load(row + _FIRST), tl.load(row + _END)
        weight = targets + begin * _TARGET
        c, first = _share(row, tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32), WIDE)
        cut = tl.full([1, WIDE], -1, tl.int64 if BYTES == 8 else tl.int32)
        last = tl.full([1, WIDE], -1, tl.int32)
        cut, last, dead = _weakest(weight, first, rivals, c, inner, taps, S, cut, last, BYTES, HIGH, WIDE)
        missing = tl.where(c < inner, count - dead, 0)
        most = tl.max(tl.max(missing, 0), 0)
        if most > _MANY:
            bits: tl.constexpr = 8 * BYTES - 1
            cut = _bound(weight, first, rivals, c, inner, taps, S, cut, count - 1, bits, False, BYTES, HIGH, WIDE)
            room = count - _smaller(weight, first, rivals, c, inner, taps, S, cut, cut, False, BYTES, HIGH, WIDE)
            tied = _smaller(weight, first, rivals, c, inner, taps, S, cut, cut * 0 + rivals, True, BYTES, HIGH, WIDE)
            last = tl.full([1, WIDE], 0, tl.int32) + rivals
            if tl.max(tl.max(tied - room, 0), 0) > 0:
                last = _bound(weight, first, rivals, c, inner, taps, S, cut, room - 1, 31, True, BYTES, HIGH, WIDE).to(
                    tl.int32
                )
        else:
            for time in range(1, most):
                low, at, _ = _weakest(weight, first, rivals, c, inner, taps, S, cut, last, BYTES, HIGH, WIDE)
                last = tl.where(missing > time, at, last)
                cut = tl.where(missing > time, low, cut)
        weights = tl.zeros([HIGH, WIDE], tl.int32)
        for start in range(0, rivals, HIGH):
            k = start + tl.arange(0, HIGH)[:, None]
            key, _ = _kernels(weight, first, rivals, k, c, inner, taps, S, BYTES)
            gone = (key >= 0) & (missing > 0) & ((key < cut) | ((key == cut) & (k <= last)))
            k, c_goes = first + tl.minimum(k, rivals - 1), tl.minimum(c, inner - 1)
            for tap in range(taps):
                life = _life(weight + _TARGET, k, c_goes, tap // S, tap % S)
                weights += (gone & (life != 0)).to(tl.int32)
                _kill(targets, begin, end, k, c_goes, tap // S, tap % S, gone)
        if tl.load(due + number * _DUE + _IN_WINDOW) == 0:
            tl.atomic_add(counts + number, tl.sum(tl.sum(weights, 0), 0).to(tl.int64), sem="relaxed")
