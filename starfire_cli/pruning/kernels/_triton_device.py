"""What runs on the device? Triton kernels that read a table of layers, so that one launch serves all of them.

Everything is decided on *keys*: the bits of |w|, read as a whole number, are ordered as |w| is, in any floating format,
subnormals included. A key below 0 is dead. `scan` looks for NaN and inf and writes the key of each window, that of its
strongest live weight; `nine` and `inside` take what goes inside of windows; `channels`, or `neurons` and `select`,
make the keys of windows that go -1; `apply` writes the zeros. The count of a layer with NaN or inf is -1 after `scan`,
and whoever writes passes it over. A linear layer is a convolution of 1 x 1, whose windows are its weights.

The table is described in `_triton_table.py`; the order of the launches stands in `triton.py`.
"""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from starfire_cli.pruning.kernels import NAN
from starfire_cli.pruning.kernels._triton_table import Row, Target

_NAN = tl.constexpr(NAN)
_WINDOWS = tl.constexpr(int(Row.WINDOWS))
_INNER = tl.constexpr(int(Row.INNER))
_TAPS = tl.constexpr(int(Row.TAPS))
_S = tl.constexpr(int(Row.S))
_IN_WINDOW = tl.constexpr(int(Row.IN_WINDOW))
_COUNT = tl.constexpr(int(Row.COUNT))
_RIVALS = tl.constexpr(int(Row.RIVALS))
_KEYS = tl.constexpr(int(Row.KEYS))
_FIRST = tl.constexpr(int(Row.FIRST))
_END = tl.constexpr(int(Row.END))
_INF = tl.constexpr(int(Row.INF))
_ROW = tl.constexpr(int(Row.WIDTH))
_SIZE = tl.constexpr(int(Target.SIZE))
_STRIDE = tl.constexpr(int(Target.STRIDE))
_TARGET = tl.constexpr(int(Target.WIDTH))


@triton.jit
def _offsets(target, k, c, r, s):
    """Where the weights (k, c, r, s) lie in a tensor, in elements."""
    strides = target + _STRIDE
    return k * tl.load(strides) + c * tl.load(strides + 1) + r * tl.load(strides + 2) + s * tl.load(strides + 3)


@triton.jit
def _magnitude(weight, k, c, r, s, there, BYTES: tl.constexpr):
    """The bits of |w|."""
    start, offsets = tl.load(weight), _offsets(weight, k, c, r, s)
    if BYTES == 2:
        bits = tl.load(start.to(tl.pointer_type(tl.int16)) + offsets, mask=there, other=0).to(tl.int32) & 0x7FFF
    elif BYTES == 4:
        bits = tl.load(start.to(tl.pointer_type(tl.int32)) + offsets, mask=there, other=0) & 0x7FFFFFFF
    else:
        bits = tl.load(start.to(tl.pointer_type(tl.int64)) + offsets, mask=there, other=0) & 0x7FFFFFFFFFFFFFFF
    return bits


@triton.jit
def _is_alive(alive, k, c, r, s, there):
    start = tl.load(alive).to(tl.pointer_type(tl.int8))
    return tl.load(start + _offsets(alive, k, c, r, s), mask=there, other=0) != 0


@triton.jit
def _key(weight, k, c, tap, S, there, BYTES: tl.constexpr):
    """|w|'s bits, -1 where it is dead. The row of `alive` follows that of the weight."""
    r, s = tap // S, tap % S
    alive = _is_alive(weight + _TARGET, k, c, r, s, there)
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
    return row, number, window, window < tl.load(row + _WINDOWS)


@triton.jit
def scan(rows, targets, programs, counts, keys, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Count -1 for layers with NaN or inf; the keys of all windows where the layer needs keys. Reads each weight once.

    A window loses its weakest first, so that its strongest stays what it is as long as anything stays; and if nothing
    does, all of it is gone, whatever its key.
    """
    row, number, window, there = _place(rows, programs, BLOCK)
    inner = tl.load(row + _INNER).to(tl.int32)
    k, c = window // inner, window % inner
    weight, S, start = targets + tl.load(row + _FIRST) * _TARGET, tl.load(row + _S), tl.load(row + _KEYS)
    largest = tl.zeros([BLOCK], keys.dtype.element_ty)
    strongest = tl.full([BLOCK], -1, keys.dtype.element_ty)
    for tap in range(tl.load(row + _TAPS)):
        bits = _magnitude(weight, k, c, tap // S, tap % S, there, BYTES)
        largest = tl.maximum(largest, bits)
        if start >= 0:
            alive = _is_alive(weight + _TARGET, k, c, tap // S, tap % S, there)
            strongest = tl.maximum(strongest, tl.where(alive, bits, -1))
    if tl.max(largest, 0) >= tl.load(row + _INF):
        tl.store(counts + number, _NAN)
    if start >= 0:
        tl.store(keys + start + window, strongest, mask=there)


@triton.jit
def _bound(key, k, cut, at_most, BITS: tl.constexpr, TIED: tl.constexpr):
    """For each column the largest number below 2^BITS that at most `at_most` of its keys are smaller than.

    With `TIED`, than which at most so many row numbers are smaller of the keys equal to `cut`.
    """
    found = cut * 0
    one = found + 1
    for bit in range(BITS):
        trial = found | (one << (BITS - 1 - bit))
        smaller = ((key == cut) & (k < trial)) if TIED else key < trial
        found = tl.where(tl.sum(smaller.to(tl.int32), 0, keep_dims=True) <= at_most, trial, found)
    return found


@triton.jit
def channels(rows, programs, keys, BYTES: tl.constexpr, HELD: tl.constexpr, WIDE: tl.constexpr, BITS: tl.constexpr):
    """Of the kernels that read an input channel, the keys of those that go become -1; equals go by index.

    A program holds the keys of `WIDE` channels of a group in registers, up to `HELD` < 2^BITS kernels each.
    """
    row = rows + tl.load(programs + 2 * tl.program_id(0)) * _ROW
    share = tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32)
    inner, rivals = tl.load(row + _INNER).to(tl.int32), tl.load(row + _RIVALS).to(tl.int32)
    count = tl.load(row + _COUNT)
    to_a_group = tl.cdiv(inner, WIDE)
    k = tl.arange(0, HELD)[:, None]
    c = (share % to_a_group) * WIDE + tl.arange(0, WIDE)[None, :]
    start = keys + tl.load(row + _KEYS) + (share // to_a_group) * rivals * inner
    none: tl.constexpr = 2 ** (8 * BYTES - 1) - 1
    key = tl.load(start + (k * inner + c), mask=(k < rivals) & (c < inner), other=none)
    zero = tl.zeros([1, WIDE], keys.dtype.element_ty)
    cut = _bound(key, k, zero, count - 1, 8 * BYTES - 1, False)  # the count-th smallest; 0 if more are dead already
    room = count - tl.sum((key < cut).to(tl.int32), 0, keep_dims=True)
    before = zero + rivals
    if tl.max(tl.max(tl.sum((key == cut).to(tl.int32), 0, keep_dims=True) - room, 1), 0) > 0:
        before = _bound(key, k, cut, room, BITS, True)
    gone = ((key < cut) | ((key == cut) & (k < before))) & (k < rivals) & (c < inner)
    tl.store(start + (k * inner + c), tl.full([HELD, WIDE], -1, keys.dtype.element_ty), mask=gone)


@triton.jit
def neurons(rows, programs, keys, tally, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Put the strongest weight of an output neuron, of equals the last, out of reach; count the guards and the dead.

    `tally`: int64, (rows, 2), of each layer how many are out of reach, how many dead.
    """
    number = tl.load(programs + 2 * tl.program_id(0))
    row = rows + number * _ROW
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


@triton.jit(do_not_specialize=["digits"])
def select(
    rows, programs, keys, tally, histograms, digits, BYTES: tl.constexpr, DIGITS: tl.constexpr, BLOCK: tl.constexpr
):
    """Of all keys of a layer the smallest become -1, equals by index: a radix search, called once for each digit.

    Keys and, after them, indices are numbers of `DIGITS` digits to the base 256. Call `digits` counts how often each
    value of digit number `digits` follows the digits that the calls before it have settled; the last call, with
    `digits` == DIGITS, writes. `histograms`: int32, (rows, DIGITS, 256), zeros before the first call.
    """
    row, number, i, there = _place(rows, programs, BLOCK)
    goal = tl.minimum(tl.load(row + _COUNT), tl.load(row + _WINDOWS) - tl.load(tally + 2 * number))
    room = goal - tl.load(tally + 2 * number + 1)  # how many of the live ones go
    value = tl.arange(0, 256)
    key_cut = tl.zeros([], tl.int64)
    index_cut = tl.zeros([], tl.int64)
    for digit in range(digits):
        many = tl.load(histograms + (number * DIGITS + digit) * 256 + value)
        settled = tl.sum((tl.cumsum(many, 0) <= room).to(tl.int64), 0)
        room -= tl.sum(tl.where(value < settled, many, 0), 0)
        if digit < BYTES:
            key_cut = key_cut * 256 + settled
        else:
            index_cut = index_cut * 256 + settled
    at = keys + tl.load(row + _KEYS) + i
    key = tl.load(at, mask=there, other=-1).to(tl.int64)
    if digits == DIGITS:
        gone = (key >= 0) & ((key < key_cut) | ((key == key_cut) & (i < index_cut)))
        tl.store(at, tl.full([BLOCK], -1, keys.dtype.element_ty), mask=gone)
    else:
        if digits < BYTES:
            rest = key >> 8 * (BYTES - 1 - digits)
            follows = (key >= 0) & ((rest >> 8) == key_cut)
        else:
            rest = i.to(tl.int64) >> 8 * (DIGITS - 1 - digits)
            follows = (key == key_cut) & ((rest >> 8) == index_cut)
        many = tl.histogram((rest & 255).to(tl.int32), 256, mask=follows)
        tl.atomic_add(histograms + (number * DIGITS + digits) * 256 + value, many, mask=many > 0)


@triton.jit
def nine(rows, targets, programs, counts, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """What goes inside of windows of nine weights is no longer alive: each thread ranks whole windows, in registers."""
    row, number, window, there = _place(rows, programs, BLOCK)
    if tl.load(counts + number) >= 0:
        inner = tl.load(row + _INNER).to(tl.int32)
        k, c = window // inner, window % inner
        weight, S, count = targets + tl.load(row + _FIRST) * _TARGET, tl.load(row + _S), tl.load(row + _IN_WINDOW)
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
            _write_zeros(weight + _TARGET, k, c, i // S, i % S, there & (keys[i] >= 0) & (before < count))


@triton.jit
def inside(rows, targets, programs, counts, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """What goes inside of windows of any size is no longer alive: each thread ranks single weights.

    That weights die while others of their window are being ranked changes nothing: they went first either way.
    """
    row, number, i, _ = _place(rows, programs, BLOCK)
    if tl.load(counts + number) >= 0:
        inner, taps = tl.load(row + _INNER).to(tl.int32), tl.load(row + _TAPS).to(tl.int32)
        window, tap, there = i // taps, i % taps, i < tl.load(row + _WINDOWS) * taps
        k, c = window // inner, window % inner
        weight, S = targets + tl.load(row + _FIRST) * _TARGET, tl.load(row + _S)
        key = _key(weight, k, c, tap, S, there, BYTES)
        before = tl.zeros([BLOCK], tl.int32)
        for other in range(taps):
            rival = _key(weight, k, c, other, S, there, BYTES)
            before += ((rival < key) | ((rival == key) & (other < tap))).to(tl.int32)
        gone = there & (key >= 0) & (before < tl.load(row + _IN_WINDOW))
        _write_zeros(weight + _TARGET, k, c, tap // S, tap % S, gone)


@triton.jit
def apply(rows, targets, programs, counts, keys, BLOCK: tl.constexpr):
    """Write +0.0 (and False) over all that is dead or whose window has a key below 0, and count it."""
    row, number, window, there = _place(rows, programs, BLOCK)
    if tl.load(counts + number) >= 0:  # `scan` made it -1 for good; below it only grows
        inner, start = tl.load(row + _INNER).to(tl.int32), tl.load(row + _KEYS)
        k, c = window // inner, window % inner
        first, end, S = tl.load(row + _FIRST), tl.load(row + _END), tl.load(row + _S)
        whole = window < 0
        if start >= 0:
            whole = tl.load(keys + start + window, mask=there, other=0) < 0
        dead = tl.zeros([BLOCK], tl.int32)
        for tap in range(tl.load(row + _TAPS)):
            r, s = tap // S, tap % S
            gone = there & (whole | (_is_alive(targets + (first + 1) * _TARGET, k, c, r, s, there) == 0))
            dead += gone.to(tl.int32)
            for target in range(first, end):
                _write_zeros(targets + target * _TARGET, k, c, r, s, gone)
        tl.atomic_add(counts + number, tl.sum(dead, 0).to(tl.int64))
