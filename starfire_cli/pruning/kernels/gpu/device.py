"""Triton kernels that read a table of layers, so that one launch serves all of them.

Everything is decided on *keys*: the bits of |w|, read as a whole number, are ordered as |w| is, in any floating format,
subnormals included. A key below 0 is dead. In a mask 1 is alive and 0 dead; while a call goes on, 2 is what has died
inside of a window or with a tile, of which the other tensors do not know yet. A linear layer is a convolution of 1 x 1.

Each call begins with `begin`. Where convolutions lose weights inside of their windows, `scan` looks for NaN and inf,
`nine` and `inside` mark what goes, and `apply`, the last to be called, writes the zeros. What whole kernels go is found
by `weakest` (`weakest.py`), `take` and `channels` (`channels.py`), which look at all other convolutions
that are due, too; what weights of linear layers by `neurons` and `pick` (`listed.py`), or else by
`select` and `finish` (`linear.py`). These write their zeros themselves. The count of a layer with NaN or inf is
-1 once all its weights have been looked at, and whoever writes passes it over. The programs of a layer that is not due
end at once.

Nothing that one program writes is read by another of the same launch; atomic additions need no order, and that of what
`neurons` lists changes nothing.

The table is described in `table.py`; the order of the launches stands in `triton.py`.
"""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

from starfire_cli.pruning.kernels import NAN
from starfire_cli.pruning.kernels.gpu.table import Due, Row, Tally, Target

_NAN = tl.constexpr(NAN)
_WINDOWS = tl.constexpr(int(Row.WINDOWS))
_INNER = tl.constexpr(int(Row.INNER))
_TAPS = tl.constexpr(int(Row.TAPS))
_S = tl.constexpr(int(Row.S))
_KEYS = tl.constexpr(int(Row.KEYS))
_FIRST = tl.constexpr(int(Row.FIRST))
_END = tl.constexpr(int(Row.END))
_INF = tl.constexpr(int(Row.INF))
_CHUNK = tl.constexpr(int(Row.CHUNK))
_CHUNKS = tl.constexpr(int(Row.CHUNKS))
_HIGH = tl.constexpr(int(Row.HIGH))
_LIST = tl.constexpr(int(Row.LIST))
_ROW = tl.constexpr(int(Row.WIDTH))
_IN_WINDOW = tl.constexpr(int(Due.IN_WINDOW))
_COUNT = tl.constexpr(int(Due.COUNT))
_MORE = tl.constexpr(int(Due.MORE))
_DUE = tl.constexpr(int(Due.WIDTH))
_SIZE = tl.constexpr(int(Target.SIZE))
_STRIDE = tl.constexpr(int(Target.STRIDE))
_TARGET = tl.constexpr(int(Target.WIDTH))
_GUARDS = tl.constexpr(int(Tally.GUARDS))
_DEAD = tl.constexpr(int(Tally.DEAD))
_LISTED = tl.constexpr(int(Tally.LISTED))
_DONE = tl.constexpr(int(Tally.DONE))
_TALLY = tl.constexpr(int(Tally.WIDTH))


@triton.jit
def _offsets(target, k, c, r, s):
    """The offsets of the weights (k, c, r, s) in a tensor, in elements."""
    strides = target + _STRIDE
    along_k, along_c = tl.load(strides).to(tl.int32), tl.load(strides + 1).to(tl.int32)
    along_r, along_s = tl.load(strides + 2).to(tl.int32), tl.load(strides + 3).to(tl.int32)
    return k * along_k + c * along_c + (r * along_r + s * along_s)


@triton.jit
def _magnitude(weight, k, c, r, s, BYTES: tl.constexpr):
    """The bits of |w|."""
    return _magnitude_at(tl.load(weight), _offsets(weight, k, c, r, s), BYTES)


@triton.jit
def _magnitude_at(start, offsets, BYTES: tl.constexpr):
    if BYTES == 2:
        bits = tl.load(start.to(tl.pointer_type(tl.int16)) + offsets).to(tl.int32) & 0x7FFF
    elif BYTES == 4:
        bits = tl.load(start.to(tl.pointer_type(tl.int32)) + offsets) & 0x7FFFFFFF
    else:
        bits = tl.load(start.to(tl.pointer_type(tl.int64)) + offsets) & 0x7FFFFFFFFFFFFFFF
    return bits


@triton.jit
def _life(alive, k, c, r, s):
    """The values of the mask at the weights (k, c, r, s): 1, 0 or 2."""
    return _life_at(tl.load(alive), _offsets(alive, k, c, r, s))


@triton.jit
def _life_at(start, offsets):
    return tl.load(start.to(tl.pointer_type(tl.int8)) + offsets)


@triton.jit
def _mark(alive, k, c, r, s, where):
    """Mark weights as dying in a mask, at (k, c, r, s)."""
    start = tl.load(alive).to(tl.pointer_type(tl.int8))
    tl.store(start + _offsets(alive, k, c, r, s), 2, mask=where)


@triton.jit
def _key(weight, k, c, tap, S, BYTES: tl.constexpr):
    """|w|'s bits, -1 where it is dead. The row of `alive` follows that of the weight."""
    r, s = tap // S, tap % S
    alive = _life(weight + _TARGET, k, c, r, s) == 1
    return tl.where(alive, _magnitude(weight, k, c, r, s, BYTES), -1)


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
def _kill(targets, first, end, k, c, r, s, where):
    """Zeros in all tensors of a layer: rows `first` to `end` of the table of tensors."""
    for target in range(first, end):
        _write_zeros(targets + target * _TARGET, k, c, r, s, where)


@triton.jit
def _place(rows, programs, BLOCK: tl.constexpr):
    """The work of a program of `BLOCK` windows: the row, its number, the windows, and which of these there are."""
    number = tl.load(programs + 2 * tl.program_id(0))
    row = rows + number * _ROW
    window = tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    return row, number, window, window < tl.load(row + _WINDOWS).to(tl.int32)


@triton.jit
def _of_windows(row, window):
    """The kernels of windows, k and c; where there is none, the last one's.

    So loads need no masks: loads under as many different masks would have to wait for one another.
    """
    inner = tl.load(row + _INNER).to(tl.int32)
    window = tl.minimum(window, tl.load(row + _WINDOWS).to(tl.int32) - 1)
    return window // inner, window % inner


@triton.jit
def begin(rows, programs, due, counts, tally, histograms, BYTES: tl.constexpr):
    """Zeros where there will be counted: of the layers that are due, linear ones with `tally` and `histograms`."""
    number = tl.load(programs + 2 * tl.program_id(0))
    if tl.load(due + number * _DUE + _IN_WINDOW) >= 0:
        tl.store(counts + number, 0)
        if tl.load(rows + number * _ROW + _LIST) >= 0:
            tl.store(tally + _TALLY * number + tl.arange(0, _TALLY), tl.zeros([_TALLY], tl.int64))
            for digit in range(BYTES):
                here = histograms + (number * BYTES + digit) * 256 + tl.arange(0, 256)
                tl.store(here, tl.zeros([256], tl.int32))


@triton.jit
def scan(rows, targets, programs, due, counts, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Count -1 for convolutions with NaN or inf, where something goes inside of windows."""
    row, number, window, _ = _place(rows, programs, BLOCK)
    if tl.load(due + number * _DUE + _IN_WINDOW) > 0:
        k, c = _of_windows(row, window)
        weight, S = targets + tl.load(row + _FIRST) * _TARGET, tl.load(row + _S).to(tl.int32)
        largest = tl.zeros([BLOCK], tl.int64 if BYTES == 8 else tl.int32)
        for tap in range(tl.load(row + _TAPS).to(tl.int32)):
            largest = tl.maximum(largest, _magnitude(weight, k, c, tap // S, tap % S, BYTES))
        if tl.max(largest, 0) >= tl.load(row + _INF):
            tl.store(counts + number, _NAN)


@triton.jit
def nine(rows, targets, programs, due, counts, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Mark what goes inside of windows of nine weights: each thread ranks whole windows, in registers."""
    row, number, window, there = _place(rows, programs, BLOCK)
    count = tl.load(due + number * _DUE + _IN_WINDOW)
    if (count > 0) & (tl.load(counts + number) >= 0):
        k, c = _of_windows(row, window)
        weight, S = targets + tl.load(row + _FIRST) * _TARGET, tl.load(row + _S).to(tl.int32)
        keys = (
            _key(weight, k, c, 0, S, BYTES),
            _key(weight, k, c, 1, S, BYTES),
            _key(weight, k, c, 2, S, BYTES),
            _key(weight, k, c, 3, S, BYTES),
            _key(weight, k, c, 4, S, BYTES),
            _key(weight, k, c, 5, S, BYTES),
            _key(weight, k, c, 6, S, BYTES),
            _key(weight, k, c, 7, S, BYTES),
            _key(weight, k, c, 8, S, BYTES),
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
    number = tl.load(programs + 2 * tl.program_id(0))
    row = rows + number * _ROW
    i = tl.load(programs + 2 * tl.program_id(0) + 1).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(due + number * _DUE + _IN_WINDOW)
    if (count > 0) & (tl.load(counts + number) >= 0):
        inner, taps = tl.load(row + _INNER).to(tl.int32), tl.load(row + _TAPS).to(tl.int32)
        weights = tl.load(row + _WINDOWS).to(tl.int32) * taps
        there, i = i < weights, tl.minimum(i, weights - 1)
        window, tap = i // taps, i % taps
        k, c = window // inner, window % inner
        weight, S = targets + tl.load(row + _FIRST) * _TARGET, tl.load(row + _S).to(tl.int32)
        key = _key(weight, k, c, tap, S, BYTES)
        before = tl.zeros([BLOCK], tl.int32)
        for other in range(taps):
            rival = _key(weight, k, c, other, S, BYTES)
            before += ((rival < key) | ((rival == key) & (other < tap))).to(tl.int32)
        gone = there & (key >= 0) & (before < count)
        _mark(weight + _TARGET, k, c, tap // S, tap % S, gone)


@triton.jit
def apply(rows, targets, programs, due, counts, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Write +0.0 (and False) over what died inside of windows; all that is dead of such a layer is counted."""
    row, number, window, there = _place(rows, programs, BLOCK)
    in_window = tl.load(due + number * _DUE + _IN_WINDOW)
    if (in_window > 0) & (tl.load(counts + number) >= 0):  # `scan` made it -1 for good; below it only grows
        k, c = _of_windows(row, window)
        S = tl.load(row + _S).to(tl.int32)
        first, end = tl.load(row + _FIRST), tl.load(row + _END)
        dead = tl.zeros([BLOCK], tl.int32)
        for tap in range(tl.load(row + _TAPS).to(tl.int32)):
            r, s = tap // S, tap % S
            life = _life(targets + (first + 1) * _TARGET, k, c, r, s)
            dead += (there & (life != 1)).to(tl.int32)
            _kill(targets, first, end, k, c, r, s, there & (life == 2))
        tl.atomic_add(counts + number, tl.sum(dead, 0).to(tl.int64), sem="relaxed")
