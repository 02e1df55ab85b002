"""Triton kernels that select whole kernels among those that read one input channel; see `device.py`.

Step by step few go, and then `weakest` finds in chunks of a layer as many candidates as can be due and `take` takes the
weakest of them all. How many can be due is what the host knows of the call before (`Due.MORE`); where more are, because
masks were changed by others or an era takes great steps, `take` leaves the channels to `channels`.
"""

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
    _END,
    _FIRST,
    _IN_WINDOW,
    _INNER,
    _MORE,
    _ROW,
    _S,
    _TAPS,
    _TARGET,
    _key,
    _kill,
    _life,
)
from starfire_cli.pruning.kernels.gpu.weakest import _RIVALS, _looked_at, _share

_MANY = tl.constexpr(24)  # kernels of a channel that are looked for one by one; for more, a cutoff is bisected


@triton.jit
def _flat(start, first, rivals, c0, inner, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Of `HIGH` kernels and `WIDE` channels (k, c), one after the other; the last ones where there are no more.

    In one dimension neighbours are neighbours in memory whatever layout Triton chooses; and loads under as many
    different masks would have to wait for one another.
    """
    i = tl.arange(0, HIGH * WIDE)
    return first + tl.minimum(start + i // WIDE, rivals - 1), tl.minimum(c0 + i % WIDE, inner - 1)


@triton.jit
def _kernels(
    weight, start, first, rivals, c0, inner, taps, S, BYTES: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr
):
    """The keys of whole kernels, those of their strongest live weights, -1 where all is dead; and which there are.

    Both (HIGH, WIDE); so are the numbers of the kernels, the third, (HIGH, 1).
    """
    k, c = _flat(start, first, rivals, c0, inner, HIGH, WIDE)
    strongest = _key(weight, k, c, 0, S, BYTES)
    for tap in range(1, taps):
        strongest = tl.maximum(strongest, _key(weight, k, c, tap, S, BYTES))
    number = start + tl.arange(0, HIGH)[:, None]
    there = (number < rivals) & (c0 + tl.arange(0, WIDE)[None, :] < inner)
    return tl.where(there, tl.reshape(strongest, [HIGH, WIDE]), -1), there, number


@triton.jit
def _weakest(
    weight, first, rivals, c0, inner, taps, S, cut, last, BYTES: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr
):
    """Of each column's live kernels that come after number `last` with key `cut`, the first: key and number, (1, WIDE).

    With it how many are dead. The largest key where none is left.
    """
    none: tl.constexpr = 2 ** (31 if BYTES < 8 else 63) - 1
    low = tl.full([HIGH, WIDE], none, cut.dtype)
    at = tl.full([HIGH, WIDE], 0, tl.int32)
    dead = tl.zeros([HIGH, WIDE], tl.int32)
    for start in range(0, rivals, HIGH):
        key, there, k = _kernels(weight, start, first, rivals, c0, inner, taps, S, BYTES, HIGH, WIDE)
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
    c0,
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
        key, there, k = _kernels(weight, start, first, rivals, c0, inner, taps, S, BYTES, HIGH, WIDE)
        smaller = ((key == cut) & (k < trial)) if TIED else key < trial
        many += (there & smaller).to(tl.int32)
    return tl.sum(many, 0, keep_dims=True)


@triton.jit
def _bound(
    weight,
    first,
    rivals,
    c0,
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
        many = _smaller(weight, first, rivals, c0, inner, taps, S, cut, trial, TIED, BYTES, HIGH, WIDE)
        found = tl.where(many <= at_most, trial, found)
    return found


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
        c0, first = _share(row, share, WIDE)
        chunk = tl.load(row + _CHUNK).to(tl.int32) + share * chunks
        depth, column = tl.arange(0, DEPTH)[:, None], tl.arange(0, WIDE)[None, :]
        c = c0 + column
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
            tl.debug_barrier()  # with more warps than one others might look at a mask that this one has changed
            for tap in range(taps):
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
        c0, first = _share(row, tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32), WIDE)
        cut = tl.full([1, WIDE], -1, tl.int64 if BYTES == 8 else tl.int32)
        last = tl.full([1, WIDE], -1, tl.int32)
        cut, last, dead = _weakest(weight, first, rivals, c0, inner, taps, S, cut, last, BYTES, HIGH, WIDE)
        missing = tl.where(c0 + tl.arange(0, WIDE)[None, :] < inner, count - dead, 0)
        most = tl.max(tl.max(missing, 0), 0)
        if most > _MANY:
            bits: tl.constexpr = 8 * BYTES - 1
            cut = _bound(weight, first, rivals, c0, inner, taps, S, cut, count - 1, bits, False, BYTES, HIGH, WIDE)
            room = count - _smaller(weight, first, rivals, c0, inner, taps, S, cut, cut, False, BYTES, HIGH, WIDE)
            tied = _smaller(weight, first, rivals, c0, inner, taps, S, cut, cut * 0 + rivals, True, BYTES, HIGH, WIDE)
            last = tl.full([1, WIDE], 0, tl.int32) + rivals
            if tl.max(tl.max(tied - room, 0), 0) > 0:
                last = _bound(weight, first, rivals, c0, inner, taps, S, cut, room - 1, 31, True, BYTES, HIGH, WIDE).to(
                    tl.int32
                )
        else:
            for time in range(1, most):
                low, at, _ = _weakest(weight, first, rivals, c0, inner, taps, S, cut, last, BYTES, HIGH, WIDE)
                last = tl.where(missing > time, at, last)
                cut = tl.where(missing > time, low, cut)
        weights = tl.zeros([HIGH * WIDE], tl.int32)
        for start in range(0, rivals, HIGH):
            key, _, k = _kernels(weight, start, first, rivals, c0, inner, taps, S, BYTES, HIGH, WIDE)
            goes = (key >= 0) & (missing > 0) & ((key < cut) | ((key == cut) & (k <= last)))
            gone = tl.reshape(goes.to(tl.int32), [HIGH * WIDE]) > 0
            k, c = _flat(start, first, rivals, c0, inner, HIGH, WIDE)
            for tap in range(taps):
                life = _life(weight + _TARGET, k, c, tap // S, tap % S)
                weights += (gone & (life != 0)).to(tl.int32)
                _kill(targets, begin, end, k, c, tap // S, tap % S, gone)
        if tl.load(due + number * _DUE + _IN_WINDOW) == 0:
            tl.atomic_add(counts + number, tl.sum(weights, 0).to(tl.int64), sem="relaxed")
