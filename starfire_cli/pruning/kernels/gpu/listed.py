"""Triton kernels that select among a short list of candidate weights of a linear layer; see `device.py`.

Step by step few go, and these are smaller than what is a little above the cutoff of the call before. So `neurons` lists
what is, reading each weight once from memory, and `pick` takes the smallest of the list. Where the list is too long or
too short it has more or less listed next time, and all weights are searched (`linear.py`). What is listed
decides how long it takes, never what goes. Layers of `LISTED` weights or fewer are listed as a whole.
"""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from starfire_cli.pruning.kernels.gpu.device import (
    _CHUNK,
    _DEAD,
    _DONE,
    _DUE,
    _END,
    _FIRST,
    _GUARDS,
    _IN_WINDOW,
    _INF,
    _INNER,
    _LIST,
    _LISTED,
    _NAN,
    _ROW,
    _SIZE,
    _STRIDE,
    _TALLY,
    _TARGET,
    _WINDOWS,
    _kill,
    _life_at,
    _magnitude_at,
)
from starfire_cli.pruning.kernels.gpu.linear import _limit, _room


@triton.jit
def _line(target, o):
    """The start of an output neuron's weights, in bytes, and their stride, in elements."""
    start, size, strides = tl.load(target), tl.load(target + _SIZE), target + _STRIDE
    return start + o * tl.load(strides) * size, tl.load(strides + 1).to(tl.int32)


@triton.jit
def neurons(
    rows,
    targets,
    programs,
    due,
    counts,
    tally,
    guards,
    limits,
    lows,
    ats,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
    LISTED: tl.constexpr,
):
    """List what of an output neuron's weights may go, and find the strongest, of equals the last, which stays.

    `tally`: int64, (rows, Tally.WIDTH). `guards`: int32, by neuron, the strongest weight, or -1. `limits`: int64,
    (layers, 2), below which key weights are listed; see `pick`. `lows`, `ats`: (lists, `LISTED`), keys, and which
    weights have them; a key of -1 goes with its tile. Counts -1 for layers with NaN or inf.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    if tl.load(due + number * _DUE + _IN_WINDOW) >= 0:
        row, o = rows + number * _ROW, tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32)
        inner = tl.load(row + _INNER).to(tl.int32)
        limit, mine = tl.load(limits + 2 * number), tl.load(row + _LIST) * LISTED
        weight = targets + tl.load(row + _FIRST) * _TARGET
        start, along = _line(weight, o)
        mask, along_mask = _line(weight + _TARGET, o)
        key_type: tl.constexpr = lows.dtype.element_ty
        best, best_at = tl.full([BLOCK], -1, key_type), tl.zeros([BLOCK], tl.int32)
        largest = tl.zeros([BLOCK], key_type)
        dead, listed = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
        for first in range(0, inner, BLOCK):
            there, at = first + tl.arange(0, BLOCK) < inner, tl.minimum(first + tl.arange(0, BLOCK), inner - 1)
            magnitude = _magnitude_at(start, at * along, BYTES)
            life = _life_at(mask, at * along_mask)
            key = tl.where(life == 1, magnitude, -1)
            largest = tl.maximum(largest, magnitude)
            best_at = tl.where(key >= best, at, best_at)
            best = tl.maximum(key, best)
            dead += ((key < 0) & there).to(tl.int32)
            listed += (there & (life != 0) & (key < limit)).to(tl.int32)
        if tl.max(largest, 0) >= tl.load(row + _INF):
            tl.store(counts + number, _NAN)
        strongest = tl.max(best, 0)
        guard = tl.max(tl.where((best == strongest) & (strongest >= 0), best_at, -1), 0)
        tl.store(guards + tl.program_id(0), guard)
        here = tally + number * _TALLY
        tl.atomic_add(here + _GUARDS, (guard >= 0).to(tl.int64), sem="relaxed")
        tl.atomic_add(here + _DEAD, tl.sum(dead, 0).to(tl.int64), sem="relaxed")
        many = tl.sum(listed, 0)
        if many > 0:  # once more, from the cache
            place = tl.atomic_add(here + _LISTED, many.to(tl.int64), sem="relaxed").to(tl.int32)
            place += tl.cumsum(listed, 0) - listed
            for first in range(0, inner, BLOCK):
                there, at = first + tl.arange(0, BLOCK) < inner, tl.minimum(first + tl.arange(0, BLOCK), inner - 1)
                magnitude = _magnitude_at(start, at * along, BYTES)
                life = _life_at(mask, at * along_mask)
                key = tl.where(life == 1, magnitude, -1)
                goes = there & (life != 0) & (key < limit)
                keep = goes & (place < LISTED)
                tl.store(lows + mine + place, key, mask=keep)
                tl.store(ats + mine + place, o * inner + at, mask=keep)
                place += goes.to(tl.int32)


@triton.jit
def _first_that_stays(value, among, room, BITS: tl.constexpr):
    """Of the numbers `among` these the `room` + 1st smallest, int64, and how many equal to it are not to stay.

    There have to be more than `room`, and they are below 2^`BITS`. Digits to the base 32, so that each warp can count
    on its own what follows a digit.
    """
    cut, digits = room * 0, tl.arange(0, 32)
    phases: tl.constexpr = (BITS + 4) // 5
    for phase in range(phases):
        rest = value >> 5 * (phases - 1 - phase)
        many = tl.histogram((rest & 31).to(tl.int32), 32, mask=among & ((rest >> 5) == cut))
        digit = tl.sum((tl.cumsum(many, 0) <= room).to(tl.int64), 0)
        room -= tl.sum(tl.where(digits < digit, many, 0), 0)
        cut = cut * 32 + digit
    return cut, room


@triton.jit
def pick(
    rows,
    targets,
    programs,
    due,
    counts,
    tally,
    guards,
    limits,
    lows,
    ats,
    BYTES: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Write +0.0 (and False) over the smallest of a linear layer's listed weights, and count all that is dead.

    Where not all of these are listed, it leaves them to others. `limits` is told below which key to list next time, the
    first of its two (or `finish` does), and how far that is above the smallest that stayed, the second: such that about
    twice as many should be listed as now went, if there is room. Small layers have no limit.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    if tl.load(due + number * _DUE + _IN_WINDOW) >= 0:
        row = rows + number * _ROW
        inner, windows = tl.load(row + _INNER).to(tl.int32), tl.load(row + _WINDOWS)
        dead, listed = tl.load(tally + number * _TALLY + _DEAD), tl.load(tally + number * _TALLY + _LISTED)
        room = _room(row, number, due, tally)
        # Before any sum: warps wait for one another there, and `limits` is written below.
        limit, span = tl.load(limits + 2 * number), tl.load(limits + 2 * number + 1)
        mine = tl.load(row + _LIST) * LISTED
        i = tl.max_contiguous(tl.arange(0, LISTED), 1)  # else loads of four a thread, and all is laid out twice
        there = i < listed
        key = tl.load(lows + mine + i, mask=there, other=0)
        at = tl.load(ats + mine + i, mask=there, other=0)
        k, c = at // inner, at % inner
        guard = tl.load(guards + tl.load(row + _CHUNK) + k, mask=there, other=0)
        lives = there & (key >= 0) & (guard != c)
        rivals = tl.sum(lives.to(tl.int32), 0).to(tl.int64)
        is_done = (listed <= LISTED) & (room <= rivals)
        tl.store(tally + number * _TALLY + _DONE, is_done.to(tl.int64))
        cut, last = limit, room * 0
        if is_done & (room > 0) & (room < rivals):
            cut, equals = _first_that_stays(key, lives, room, 8 * BYTES - 1)
            if equals > 0:
                last, equals = _first_that_stays(at, lives & (key == cut), equals, 31)
        if is_done & (tl.load(counts + number) >= 0):
            goes = lives & ((key < cut) | ((key == cut) & (at < last))) & (room > 0)
            goes = goes | (there & (key < 0))
            _kill(targets, tl.load(row + _FIRST), tl.load(row + _END), k, c, 0, 0, goes)
            tl.store(counts + number, dead + tl.maximum(room, 0))
        if (windows > LISTED) & (room > 0):
            if limit > 0:  # else nothing could be listed
                wanted = tl.minimum(2 * room + 64, (LISTED + tl.minimum(room, LISTED)) // 2)
                span = span * wanted // tl.minimum(tl.maximum(listed, wanted // 4 + 1), 4 * wanted)
                largest: tl.constexpr = 1 << (50 if BYTES == 8 else 8 * BYTES - 3)
                span = tl.minimum(tl.maximum(span, 1), largest)
            tl.store(limits + 2 * number + 1, span)
            if is_done:
                tl.store(limits + 2 * number, _limit(row, cut, span))
