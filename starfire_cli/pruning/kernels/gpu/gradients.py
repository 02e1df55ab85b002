"""Triton kernel that zeroes the gradients of dead weights, for all layers in one launch."""

# Triton is a language of its own inside of Python; neither it nor the package has types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

import triton
import triton.language as tl

_ALIVE = tl.constexpr(0x01010101)  # four bytes of a mask


@triton.jit(do_not_specialize=["tensors"])
def mute(table, tensors, BYTES: tl.constexpr, TENSORS: tl.constexpr, BLOCK: tl.constexpr):
    """Write +0.0 to gradients whose weights are dead: `BLOCK` elements of one tensor.

    `table`: int64, (tensors, 4): the addresses of a gradient of `BYTES` bytes an element, a multiple of 16, and of its
    mask, a multiple of 4, both in the same order without gaps; how many elements; and the number of the first program.
    `TENSORS` is a power of two of at least `tensors`. Four elements are read and written at once, or not at all where
    they live.
    """
    row = tl.arange(0, TENSORS)
    firsts = tl.load(table + 4 * row + 3, mask=row < tensors, other=0x7FFFFFFF)
    mine = table + 4 * (tl.sum((firsts <= tl.program_id(0)).to(tl.int32), 0) - 1)
    bits = tl.int16 if BYTES == 2 else tl.int32 if BYTES == 4 else tl.int64
    gradient = tl.multiple_of(tl.load(mine).to(tl.pointer_type(bits)), 16)
    alive, size = tl.load(mine + 1), tl.load(mine + 2).to(tl.int32)
    start = (tl.program_id(0) - tl.load(mine + 3).to(tl.int32)) * BLOCK
    four, byte = start // 4 + tl.arange(0, BLOCK // 4), tl.arange(0, 4)[None, :]
    lives = tl.load(alive.to(tl.pointer_type(tl.int32)) + four, mask=four < size // 4, other=_ALIVE)
    i = four[:, None] * 4 + byte
    old = tl.load(gradient + i, mask=((lives != _ALIVE) & (lives != 0))[:, None], other=0)
    new = tl.where((lives[:, None] >> 8 * byte) & 1 == 1, old, 0)
    tl.store(gradient + i, new, mask=(lives != _ALIVE)[:, None])
    if start + BLOCK >= size:  # what is left over
        last = size // 4 * 4 + tl.arange(0, 4)
        dead = tl.load(alive.to(tl.pointer_type(tl.int8)) + last, mask=last < size, other=1) == 0
        tl.store(gradient + last, tl.zeros([4], bits), mask=dead)
