"""On the device: which single weights of a linear layer, or which of its tiles, go? See `_triton_device.py`.

Step by step few go, and these are smaller than what is a little above the cutoff of the call before. So `neurons` lists
what is, reading each weight once from memory, and `pick` takes the smallest of the list. Where the list is too long or
too short it has more or less listed next time, and `spread`, `select` and `finish` search among all weights. What is
listed decides how long it takes, never what goes. Layers of `LISTED` weights or fewer are listed as a whole.
"""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from starfire_cli.pruning.kernels._triton_device import (
    _CHUNK,
    _COUNT,
    _DEAD,
    _DONE,
    _DUE,
    _END,
    _FIRST,
    _GUARDS,
    _IN_WINDOW,
    _INF,
    _INNER,
    _KEYS,
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
    _life,
    _life_at,
    _magnitude,
    _magnitude_at,
    _of_windows,
    _place,
)


@triton.jit
def _room(row, number, due, tally):
    """How many of a layer's live weights go, or tiles; below 0 where more are dead than have to be."""
    guarded, dead = tl.load(tally + number * _TALLY + _GUARDS), tl.load(tally + number * _TALLY + _DEAD)
    return tl.minimum(tl.load(due + number * _DUE + _COUNT), tl.load(row + _WINDOWS) - guarded) - dead


@triton.jit
def _limit(row, cut, span):
    """Below which key to list next time; a guard may be what stayed first, and its key is the largest number."""
    return tl.minimum(cut, tl.load(row + _INF)) + span


@triton.jit
def _line(target, o):
    """Where the weights of an output neuron start, in bytes, and how far they lie apart, in elements."""
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


@triton.jit
def spread(
    rows,
    targets,
    programs,
    due,
    counts,
    tally,
    guards,
    keys,
    histograms,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the keys of an output neuron's weights, that of its guard out of reach; count the first digits of the keys.

    As the first phase of `select` would.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    if (tl.load(due + number * _DUE + _IN_WINDOW) >= 0) & (tl.load(tally + number * _TALLY + _DONE) == 0):
        row, o = rows + number * _ROW, tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32)
        inner, weight = tl.load(row + _INNER).to(tl.int32), targets + tl.load(row + _FIRST) * _TARGET
        guard = tl.load(guards + tl.load(row + _CHUNK) + o)
        none: tl.constexpr = 2 ** (8 * BYTES - 1) - 1
        start = keys + tl.load(row + _KEYS) + o * inner
        many = tl.zeros([256], tl.int32)
        for first in range(0, inner, BLOCK):
            there, at = first + tl.arange(0, BLOCK) < inner, tl.minimum(first + tl.arange(0, BLOCK), inner - 1)
            magnitude = _magnitude(weight, o, at, 0, 0, BYTES)
            key = tl.where(_life(weight + _TARGET, o, at, 0, 0) == 1, magnitude, -1)
            key = tl.where(at == guard, none, key)
            tl.store(start + at, key)  # where there is none, once more what the last one has
            digit = (key >> 8 * (BYTES - 1)).to(tl.int32) & 255
            many += tl.histogram(digit, 256, mask=(key >= 0) & there)
        digits = histograms + number * BYTES * 256 + tl.arange(0, 256)
        tl.atomic_add(digits, many, mask=many > 0, sem="relaxed")


@triton.jit
def _cutoff(row, number, due, tally, histograms, states, phase, BYTES: tl.constexpr):
    """The first `phase` digits of the first key that stays, and how many of those go that begin with them."""
    room = _room(row, number, due, tally)
    before = states + (number * (BYTES + 1) + phase - 1) * 2
    cut = tl.load(before, mask=phase > 1, other=0)
    room = tl.where(phase > 1, tl.load(before + 1, mask=phase > 1, other=0), room)
    if phase > 0:
        value = tl.arange(0, 256)
        many = tl.load(histograms + (number * BYTES + phase - 1) * 256 + value)
        digit = tl.sum((tl.cumsum(many, 0) <= room).to(tl.int64), 0)
        room -= tl.sum(tl.where(value < digit, many, 0), 0)
        cut = cut * 256 + digit
    return cut, room


@triton.jit
def _go(programs, number, key, states, ties, BYTES: tl.constexpr):
    """Which of a program's keys go, once all phases but the last are over."""
    final = states + (number * (BYTES + 1) + BYTES) * 2
    cut, room = tl.load(final), tl.load(final + 1)
    goes = key.to(tl.int64) < cut
    if room > 0:  # of those that equal the cutoff, so many go
        tied, value = (key == cut).to(tl.int32), tl.arange(0, 256)
        share = tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32)
        before = tl.zeros([256], tl.int32)
        for start in range(0, share * (tl.max(tied, 0) > 0).to(tl.int32), 256):
            mine = ties + tl.program_id(0) - share
            before += tl.load(mine + start + value, mask=start + value < share, other=0)
        goes = goes | ((tied > 0) & (tl.cumsum(tied, 0) + tl.sum(before, 0) <= room))
    return goes & (key >= 0)


@triton.jit(do_not_specialize=["phase"])
def select(rows, programs, due, tally, keys, histograms, states, ties, phase, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Which of all keys of a layer are the smallest, equals by index? A radix search, called for each of its phases.

    Keys are numbers of `BYTES` digits to the base 256. Phase d < `BYTES` counts how often each value of digit d follows
    the digits that the phases before it have settled, into `histograms`, int32, (rows, BYTES, 256), zeros at first.
    Phase `BYTES` counts for each program the keys that equal the cutoff, into `ties`, int32, (programs,), where only
    some of them go; then `_go` knows which go. The phase after it makes those -1. What is settled before a phase is
    kept in `states`, int64, (rows, BYTES + 1, 2).
    """
    row, number, i, there = _place(rows, programs, BLOCK)
    if (tl.load(due + number * _DUE + _COUNT) > 0) & (tl.load(tally + number * _TALLY + _DONE) == 0):
        at = keys + tl.load(row + _KEYS) + i
        key = tl.load(at, mask=there, other=-1)
        if phase <= BYTES:
            cut, room = _cutoff(row, number, due, tally, histograms, states, phase, BYTES)
            if tl.load(programs + 2 * tl.program_id(0) + 1) == 0:
                here = states + (number * (BYTES + 1) + phase) * 2
                tl.store(here, cut)
                tl.store(here + 1, room)
            cut = cut.to(key.dtype)
            if phase < BYTES:
                rest = key >> 8 * (BYTES - 1 - phase)
                follows = (key >= 0) & ((rest >> 8) == cut)
                many, value = tl.histogram((rest & 255).to(tl.int32), 256, mask=follows), tl.arange(0, 256)
                digits = histograms + (number * BYTES + phase) * 256 + value
                tl.atomic_add(digits, many, mask=many > 0)
            elif room > 0:
                tl.store(ties + tl.program_id(0), tl.sum((key == cut).to(tl.int32), 0))
        else:
            gone = _go(programs, number, key, states, ties, BYTES)
            tl.store(at, tl.full([BLOCK], -1, keys.dtype.element_ty), mask=gone)


@triton.jit
def finish(
    rows,
    targets,
    programs,
    due,
    counts,
    tally,
    keys,
    limits,
    states,
    ties,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write +0.0 (and False) over the weights of a linear layer that go; all that is dead is counted.

    `limits` is told what to list next time.
    """
    row, number, i, there = _place(rows, programs, BLOCK)
    is_due = (tl.load(due + number * _DUE + _IN_WINDOW) >= 0) & (tl.load(tally + number * _TALLY + _DONE) == 0)
    if is_due & (tl.load(counts + number) >= 0):  # `neurons` made it -1 for good; from now on it only grows
        k, c = _of_windows(row, i)
        first, end = tl.load(row + _FIRST), tl.load(row + _END)
        key = tl.load(keys + tl.load(row + _KEYS) + i, mask=there, other=-1)
        gone = key < 0  # long since, or with its tile
        if tl.load(due + number * _DUE + _COUNT) > 0:
            gone = gone | _go(programs, number, key, states, ties, BYTES)
            if (tl.load(programs + 2 * tl.program_id(0) + 1) == 0) & (_room(row, number, due, tally) > 0):
                cut = tl.load(states + (number * (BYTES + 1) + BYTES) * 2)
                tl.store(limits + 2 * number, _limit(row, cut, tl.load(limits + 2 * number + 1)))
        life = _life(targets + (first + 1) * _TARGET, k, c, 0, 0)
        dead = tl.sum((there & (gone | (life == 0))).to(tl.int32), 0)
        tl.atomic_add(counts + number, dead.to(tl.int64), sem="relaxed")
        _kill(targets, first, end, k, c, 0, 0, there & gone & (life != 0))
