"""What runs on the device? Triton kernels that read a table of layers, so that one launch serves all of them.

Everything is decided on *keys*: the bits of |w|, read as a whole number, are ordered as |w| is, in any floating format,
subnormals included. A key below 0 is dead. `scan` looks for NaN and inf. Of convolutions `nine`, `inside` and
`channels` mark what goes; of linear layers `scan` writes the keys, and `neurons` and `select` make those -1 that go.
`apply` writes the zeros where anything died. In a mask 1 is alive, 0 dead, and 2 what has died since the call began, of
which the other tensors do not know yet. The count of a layer with NaN or inf is -1 after `scan`, and whoever writes
passes it over. A linear layer is a convolution of 1 x 1, whose windows are its weights. The programs of a layer that is
not due end at once.

The table is described in `_triton_table.py`; the order of the launches stands in `triton.py`.
"""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from starfire_cli.pruning.kernels import NAN
from starfire_cli.pruning.kernels._triton_table import Due, Row, Target

_NAN = tl.constexpr(NAN)
_WINDOWS = tl.constexpr(int(Row.WINDOWS))
_INNER = tl.constexpr(int(Row.INNER))
_TAPS = tl.constexpr(int(Row.TAPS))
_S = tl.constexpr(int(Row.S))
_RIVALS = tl.constexpr(int(Row.RIVALS))
_KEYS = tl.constexpr(int(Row.KEYS))
_FIRST = tl.constexpr(int(Row.FIRST))
_END = tl.constexpr(int(Row.END))
_INF = tl.constexpr(int(Row.INF))
_ROW = tl.constexpr(int(Row.WIDTH))
_IN_WINDOW = tl.constexpr(int(Due.IN_WINDOW))
_COUNT = tl.constexpr(int(Due.COUNT))
_DUE = tl.constexpr(int(Due.WIDTH))
_SIZE = tl.constexpr(int(Target.SIZE))
_STRIDE = tl.constexpr(int(Target.STRIDE))
_TARGET = tl.constexpr(int(Target.WIDTH))
_FEW = tl.constexpr(24)  # kernels of a channel that are looked for one by one; for more, a cutoff is bisected


@triton.jit
def _offsets(target, k, c, r, s):
    """Where the weights (k, c, r, s) lie in a tensor, in elements."""
    strides = target + _STRIDE
    along_k, along_c = tl.load(strides).to(tl.int32), tl.load(strides + 1).to(tl.int32)
    along_r, along_s = tl.load(strides + 2).to(tl.int32), tl.load(strides + 3).to(tl.int32)
    return k * along_k + c * along_c + (r * along_r + s * along_s)


@triton.jit
def _load(pointers, there):
    """Numbers, 0 where there are none; with None there is everything."""
    if there is None:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=there, other=0)


@triton.jit
def _magnitude(weight, k, c, r, s, there, BYTES: tl.constexpr):
    """The bits of |w|."""
    start, offsets = tl.load(weight), _offsets(weight, k, c, r, s)
    if BYTES == 2:
        bits = _load(start.to(tl.pointer_type(tl.int16)) + offsets, there).to(tl.int32) & 0x7FFF
    elif BYTES == 4:
        bits = _load(start.to(tl.pointer_type(tl.int32)) + offsets, there) & 0x7FFFFFFF
    else:
        bits = _load(start.to(tl.pointer_type(tl.int64)) + offsets, there) & 0x7FFFFFFFFFFFFFFF
    return bits


@triton.jit
def _life(alive, k, c, r, s, there):
    """What the mask says: 1, 0 or 2."""
    start = tl.load(alive).to(tl.pointer_type(tl.int8))
    return _load(start + _offsets(alive, k, c, r, s), there)


@triton.jit
def _mark(alive, k, c, r, s, where):
    """These die."""
    start = tl.load(alive).to(tl.pointer_type(tl.int8))
    tl.store(start + _offsets(alive, k, c, r, s), 2, mask=where)


@triton.jit
def _key(weight, k, c, tap, S, there, BYTES: tl.constexpr):
    """|w|'s bits, -1 where it is dead. The row of `alive` follows that of the weight."""
    r, s = tap // S, tap % S
    alive = _life(weight + _TARGET, k, c, r, s, there) == 1
    return tl.where(alive, _magnitude(weight, k, c, r, s, there, BYTES), -1)


@triton.jit
def _write_zeros(target, k, c, r, s, where):
    """Zero has the same bytes in every dtype; so has False."""
    start, size, offsets = tl.load(target), tl.load(target + _SIZE), _offsets(target, k, c, r, s)
    if size == 4:
        tl.store(start.to(tl.pointer_type(tl.int32)) + offsets, 0, mask=where)
    elif size == 1:
        tl.store(start.to(tl.pointer_type(tl.int8)) + offsets, 0, mask=where)
    elif size == 2:
        tl.store(start.to(tl.pointer_type(tl.int16)) + offsets, 0, mask=where)
    else:
        tl.store(start.to(tl.pointer_type(tl.int64)) + offsets, 0, mask=where)


@triton.jit
def _place(rows, programs, BLOCK: tl.constexpr):
    """What a program of `BLOCK` windows works on: the row, its number, the windows, and which of these there are."""
    number = tl.load(programs + 2 * tl.program_id(0))
    row = rows + number * _ROW
    window = tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    return row, number, window, window < tl.load(row + _WINDOWS).to(tl.int32)


@triton.jit
def scan(rows, targets, programs, due, counts, keys, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Count -1 for layers with NaN or inf; the keys of linear layers. Reads each weight once."""
    row, number, window, there = _place(rows, programs, BLOCK)
    if tl.load(due + number * _DUE + _IN_WINDOW) >= 0:
        inner = tl.load(row + _INNER).to(tl.int32)
        k, c = window // inner, window % inner
        weight, S = targets + tl.load(row + _FIRST) * _TARGET, tl.load(row + _S).to(tl.int32)
        start = tl.load(row + _KEYS)
        largest = tl.zeros([BLOCK], keys.dtype.element_ty)
        for tap in range(tl.load(row + _TAPS).to(tl.int32)):
            largest = tl.maximum(largest, _magnitude(weight, k, c, tap // S, tap % S, there, BYTES))
        if tl.max(largest, 0) >= tl.load(row + _INF):
            tl.store(counts + number, _NAN)
        if start >= 0:
            alive = _life(weight + _TARGET, k, c, 0, 0, there) == 1
            tl.store(keys + start + window, tl.where(alive, largest, -1), mask=there)


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


@triton.jit
def nine(rows, targets, programs, due, counts, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Mark what goes inside of windows of nine weights: each thread ranks whole windows, in registers."""
    row, number, window, there = _place(rows, programs, BLOCK)
    count = tl.load(due + number * _DUE + _IN_WINDOW)
    if (count > 0) & (tl.load(counts + number) >= 0):
        inner = tl.load(row + _INNER).to(tl.int32)
        k, c = window // inner, window % inner
        weight, S = targets + tl.load(row + _FIRST) * _TARGET, tl.load(row + _S).to(tl.int32)
        keys = (
            _key(weight, k, c, 0, S, there, BYTES),
            _key(weight, k, c, 1, S, there, BYTES),
            _key(weight, k, c, 2, S, there, BYTES),
            _key(weight, k, c, 3, S, there, BYTES),
            _key(weight, k, c, 4, S, there, BYTES),
            _key(weight, k, c, 5, S, there, BYTES),
            _key(weight, k, c, 6, S, there, BYTES),
            _key(weight, k, c, 7, S, there, BYTES),
            _key(weight, k, c, 8, S, there, BYTES),
        )
        for i in tl.static_range(9):
            before = tl.zeros([BLOCK], tl.int32)
            for j in tl.static_range(9):
                if j < i:
                    before += (keys[j] <= keys[i]).to(tl.int32)
                elif j > i:
                    before += (keys[j] < keys[i]).to(tl.int32)
            _mark(weight + _TARGET, k, c, i // S, i % S, there & (keys[i] >= 0) & (before < count))


@triton.jit
def inside(rows, targets, programs, due, counts, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Mark what goes inside of windows of any size: each thread ranks single weights.

    That weights die while others of their window are being ranked changes nothing: they went first either way.
    """
    row, number, i, _ = _place(rows, programs, BLOCK)
    count = tl.load(due + number * _DUE + _IN_WINDOW)
    if (count > 0) & (tl.load(counts + number) >= 0):
        inner, taps = tl.load(row + _INNER).to(tl.int32), tl.load(row + _TAPS).to(tl.int32)
        window, tap, there = i // taps, i % taps, i < tl.load(row + _WINDOWS).to(tl.int32) * taps
        k, c = window // inner, window % inner
        weight, S = targets + tl.load(row + _FIRST) * _TARGET, tl.load(row + _S).to(tl.int32)
        key = _key(weight, k, c, tap, S, there, BYTES)
        before = tl.zeros([BLOCK], tl.int32)
        for other in range(taps):
            rival = _key(weight, k, c, other, S, there, BYTES)
            before += ((rival < key) | ((rival == key) & (other < tap))).to(tl.int32)
        gone = there & (key >= 0) & (before < count)
        _mark(weight + _TARGET, k, c, tap // S, tap % S, gone)


@triton.jit
def apply(rows, targets, programs, due, counts, keys, BLOCK: tl.constexpr):
    """Write +0.0 (and False) over what died, that is what is marked or, of linear layers, has a key below 0.

    All that is dead is counted.
    """
    row, number, window, there = _place(rows, programs, BLOCK)
    is_due = tl.load(due + number * _DUE + _IN_WINDOW) >= 0
    if is_due & (tl.load(counts + number) >= 0):  # `scan` made it -1 for good; below it only grows
        inner, start = tl.load(row + _INNER).to(tl.int32), tl.load(row + _KEYS)
        k, c = window // inner, window % inner
        first, end, S = tl.load(row + _FIRST), tl.load(row + _END), tl.load(row + _S).to(tl.int32)
        whole = window < 0
        if start >= 0:
            whole = tl.load(keys + start + window, mask=there, other=0) < 0
        dead = tl.zeros([BLOCK], tl.int32)
        for tap in range(tl.load(row + _TAPS).to(tl.int32)):
            r, s = tap // S, tap % S
            life = _life(targets + (first + 1) * _TARGET, k, c, r, s, there)
            gone = there & ((life == 2) | ((life == 1) & whole))
            dead += (there & (gone | (life == 0))).to(tl.int32)
            for target in range(first, end):
                _write_zeros(targets + target * _TARGET, k, c, r, s, gone)
        tl.atomic_add(counts + number, tl.sum(dead, 0).to(tl.int64))
