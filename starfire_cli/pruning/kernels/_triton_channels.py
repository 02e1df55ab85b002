"""On the device: of the kernels that read an input channel, which go? See `_triton_device.py`."""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from starfire_cli.pruning.kernels._triton_device import (
    _COUNT,
    _DUE,
    _FIRST,
    _INNER,
    _ROW,
    _S,
    _TAPS,
    _TARGET,
    _key,
    _mark,
)
from starfire_cli.pruning.kernels._triton_table import Row

_RIVALS = tl.constexpr(int(Row.RIVALS))
_FEW = tl.constexpr(24)  # kernels of a channel that are looked for one by one; for more, a cutoff is bisected


@triton.jit
def _kernels(weight, first, rivals, k, c, inner, taps, S, BYTES: tl.constexpr):
    """The keys of whole kernels, those of their strongest live weights, -1 where all is dead; and which there are.

    What there is not is read elsewhere: loads under as many different masks would have to wait for one another.
    """
    there = (k < rivals) & (c < inner)
    k, c = first + tl.minimum(k, rivals - 1), tl.minimum(c, inner - 1)
    strongest = _key(weight, k, c, 0, S, None, BYTES)
    for tap in range(1, taps):
        strongest = tl.maximum(strongest, _key(weight, k, c, tap, S, None, BYTES))
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
def channels(rows, targets, programs, due, counts, BYTES: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr):
    """Of the kernels that read an input channel, those that go are marked; equals go by index.

    A program has `WIDE` channels of a group and passes over their kernels `HIGH` at a time: once to find the weakest
    and how many are dead, once for each further one that is due, and once to write.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    row = rows + number * _ROW
    count = tl.load(due + number * _DUE + _COUNT).to(tl.int32)
    if (count > 0) & (tl.load(counts + number) >= 0):
        share = tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32)
        inner, rivals = tl.load(row + _INNER).to(tl.int32), tl.load(row + _RIVALS).to(tl.int32)
        taps, S = tl.load(row + _TAPS).to(tl.int32), tl.load(row + _S).to(tl.int32)
        weight = targets + tl.load(row + _FIRST) * _TARGET
        to_a_group = tl.cdiv(inner, WIDE)
        first = (share // to_a_group) * rivals
        c = (share % to_a_group) * WIDE + tl.arange(0, WIDE)[None, :]
        cut = tl.full([1, WIDE], -1, tl.int64 if BYTES == 8 else tl.int32)
        last = tl.full([1, WIDE], -1, tl.int32)
        cut, last, dead = _weakest(weight, first, rivals, c, inner, taps, S, cut, last, BYTES, HIGH, WIDE)
        missing = tl.where(c < inner, count - dead, 0)
        most = tl.max(tl.max(missing, 1), 0)
        if most > _FEW:
            bits: tl.constexpr = 8 * BYTES - 1
            cut = _bound(weight, first, rivals, c, inner, taps, S, cut, count - 1, bits, False, BYTES, HIGH, WIDE)
            room = count - _smaller(weight, first, rivals, c, inner, taps, S, cut, cut, False, BYTES, HIGH, WIDE)
            tied = _smaller(weight, first, rivals, c, inner, taps, S, cut, cut * 0 + rivals, True, BYTES, HIGH, WIDE)
            last = tl.full([1, WIDE], 0, tl.int32) + rivals
            if tl.max(tl.max(tied - room, 1), 0) > 0:
                last = _bound(weight, first, rivals, c, inner, taps, S, cut, room - 1, 31, True, BYTES, HIGH, WIDE).to(
                    tl.int32
                )
        else:
            for time in range(1, most):
                low, at, _ = _weakest(weight, first, rivals, c, inner, taps, S, cut, last, BYTES, HIGH, WIDE)
                last = tl.where(missing > time, at, last)
                cut = tl.where(missing > time, low, cut)
        if most > 0:
            for start in range(0, rivals, HIGH):
                k = start + tl.arange(0, HIGH)[:, None]
                key, _ = _kernels(weight, first, rivals, k, c, inner, taps, S, BYTES)
                gone = (key >= 0) & (missing > 0) & ((key < cut) | ((key == cut) & (k <= last)))
                for tap in range(taps):
                    _mark(weight + _TARGET, first + k, c, tap // S, tap % S, gone)
