"""Triton kernels that select among all weights or all tiles of a linear layer; see `device.py`.

A radix search, for layers of which `listed.py` has not listed enough, and for tiles.
"""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from starfire_cli.pruning.kernels.gpu.device import (
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
    _KEYS,
    _TALLY,
    _TARGET,
    _WINDOWS,
    _kill,
    _life,
    _magnitude,
    _of_windows,
    _place,
)


@triton.jit
def _room(row, number, due, tally):
    """The number of a layer's live weights, or tiles, that go; below 0 where more are dead than have to be."""
    guarded, dead = tl.load(tally + number * _TALLY + _GUARDS), tl.load(tally + number * _TALLY + _DEAD)
    return tl.minimum(tl.load(due + number * _DUE + _COUNT), tl.load(row + _WINDOWS) - guarded) - dead


@triton.jit
def _limit(row, cut, span):
    """The key below which to list next time; a guard may be what stayed first, and its key is the largest number."""
    return tl.minimum(cut, tl.load(row + _INF)) + span


@triton.jit
def _key_of(row, targets, guards, i, there, BYTES: tl.constexpr):
    """A linear layer's weights, that of a neuron's guard out of reach; -1 where dead, or where there is none."""
    k, c = _of_windows(row, i)
    weight = targets + tl.load(row + _FIRST) * _TARGET
    key = tl.where(_life(weight + _TARGET, k, c, 0, 0) == 1, _magnitude(weight, k, c, 0, 0, BYTES), -1)
    none: tl.constexpr = 2 ** (8 * BYTES - 1) - 1
    key = tl.where(tl.load(guards + tl.load(row + _CHUNK) + k) == c, none, key)
    return tl.where(there, key, -1)


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
    """True for the keys of a program that go, once all phases but the last are over."""
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
def select(
    rows,
    targets,
    programs,
    due,
    tally,
    found,
    histograms,
    states,
    ties,
    phase,
    BYTES: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """Find the smallest of all keys of a layer, equals by index: a radix search, called for each of its phases.

    `found` are the keys of its `TILES`, or else the guards of its neurons: each phase reads the weights anew. Keys are
    numbers of `BYTES` digits to the base 256. Phase d < `BYTES` counts how often each value of digit d follows the
    digits that the phases before it have settled, into `histograms`, int32, (rows, BYTES, 256), zeros at first. Phase
    `BYTES` counts for each program the keys that equal the cutoff, into `ties`, int32, (programs,), where only some of
    them go; then `_go` knows which go. The phase after it makes those of tiles -1. What is settled before a phase is
    kept in `states`, int64, (rows, BYTES + 1, 2).
    """
    row, number, i, there = _place(rows, programs, BLOCK)
    if (tl.load(due + number * _DUE + _COUNT) > 0) & (tl.load(tally + number * _TALLY + _DONE) == 0):
        if TILES:
            key = tl.load(found + tl.load(row + _KEYS) + i, mask=there, other=-1)
        else:
            key = _key_of(row, targets, found, i, there, BYTES)
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
        elif TILES:
            gone = _go(programs, number, key, states, ties, BYTES)
            tl.store(found + tl.load(row + _KEYS) + i, tl.full([BLOCK], -1, tl.int64), mask=gone)


@triton.jit
def finish(
    rows,
    targets,
    programs,
    due,
    counts,
    tally,
    guards,
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
        key = _key_of(row, targets, guards, i, there, BYTES)
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
