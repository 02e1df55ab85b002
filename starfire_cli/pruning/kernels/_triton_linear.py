"""On the device: which single weights of a linear layer, or which of its tiles, go? See `_triton_device.py`."""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from starfire_cli.pruning.kernels._triton_device import _COUNT, _DUE, _INNER, _KEYS, _ROW, _WINDOWS, _place


@triton.jit
def neurons(rows, programs, due, keys, tally, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Put the strongest weight of an output neuron, of equals the last, out of reach; count the guards and the dead.

    `tally`: int64, (rows, 2), of each layer how many are out of reach, how many dead.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    row = rows + number * _ROW
    if tl.load(due + number * _DUE + _COUNT) > 0:
        inner = tl.load(row + _INNER).to(tl.int32)
        start = keys + tl.load(row + _KEYS) + tl.load(programs + 2 * tl.program_id(0) + 1) * inner
        best = tl.full([BLOCK], -1, keys.dtype.element_ty)
        best_at = tl.zeros([BLOCK], tl.int32)
        dead = tl.zeros([BLOCK], tl.int32)
        for first in range(0, inner, BLOCK):
            at = first + tl.arange(0, BLOCK)
            key = tl.load(start + at, mask=at < inner, other=-1)
            best_at = tl.where(key >= best, at, best_at)
            best = tl.maximum(key, best)
            dead += ((key < 0) & (at < inner)).to(tl.int32)
        strongest = tl.max(best, 0)
        none: tl.constexpr = 2 ** (8 * BYTES - 1) - 1
        tl.atomic_add(tally + 2 * number + 1, tl.sum(dead, 0).to(tl.int64))
        if strongest >= 0:
            tl.store(start + tl.max(tl.where(best == strongest, best_at, -1), 0), none)
            tl.atomic_add(tally + 2 * number, tl.full([], 1, tl.int64))


@triton.jit(do_not_specialize=["phase"])
def select(rows, programs, due, keys, tally, histograms, ties, phase, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Of all keys of a layer the smallest become -1, equals by index: a radix search, called for each of its phases.

    Keys are numbers of `BYTES` digits to the base 256. Phase d < `BYTES` counts how often each value of digit d follows
    the digits that the phases before it have settled, into `histograms`, int32, (rows, BYTES, 256), zeros at first. The
    next counts for each program the keys that equal the cutoff, into `ties`, int32, (programs,). The last one writes.
    """
    row, number, i, there = _place(rows, programs, BLOCK)
    count = tl.load(due + number * _DUE + _COUNT)
    if count > 0:
        goal = tl.minimum(count, tl.load(row + _WINDOWS) - tl.load(tally + 2 * number))
        room = goal - tl.load(tally + 2 * number + 1)  # how many of the live ones go
        value = tl.arange(0, 256)
        cut = tl.zeros([], tl.int64)
        for digit in range(tl.minimum(phase, BYTES)):
            many = tl.load(histograms + (number * BYTES + digit) * 256 + value)
            settled = tl.sum((tl.cumsum(many, 0) <= room).to(tl.int64), 0)
            room -= tl.sum(tl.where(value < settled, many, 0), 0)
            cut = cut * 256 + settled
        at = keys + tl.load(row + _KEYS) + i
        key = tl.load(at, mask=there, other=-1).to(tl.int64)
        if phase < BYTES:
            rest = key >> 8 * (BYTES - 1 - phase)
            follows = (key >= 0) & ((rest >> 8) == cut)
            many = tl.histogram((rest & 255).to(tl.int32), 256, mask=follows)
            tl.atomic_add(histograms + (number * BYTES + phase) * 256 + value, many, mask=many > 0)
        else:
            tied = (key == cut).to(tl.int32)
            mine = ties + tl.program_id(0)
            if phase == BYTES:
                tl.store(mine, tl.sum(tied, 0))
            else:
                before = tl.zeros([256], tl.int32)
                share = tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32)
                for start in range(0, share * (tl.max(tied, 0) > 0).to(tl.int32), 256):
                    before += tl.load(mine - share + start + value, mask=start + value < share, other=0)
                goes = (tied > 0) & (tl.cumsum(tied, 0) + tl.sum(before, 0) <= room)
                gone = (key >= 0) & ((key < cut) | goes)
                tl.store(at, tl.full([BLOCK], -1, keys.dtype.element_ty), mask=gone)
