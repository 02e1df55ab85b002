"""What an encoding of a mask is, and which are tried: one file each in `encodings/`, found by its name.

An encoding looks at the mask alone, never at the method that made it. The smallest that fits a layer is used.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from starfire_cli.damage import Damaged
from starfire_cli.errors import BadOption
from starfire_cli.formats.packed.streams import Bits, StreamReader, StreamWriter
from starfire_cli.registry import Family


class Alive(NamedTuple):
    """A mask as it was read: `each` neighbours, in C order, share one bit."""

    bits: Bits
    each: int = 1

    def mask(self) -> Bits:
        """One bit a weight."""
        return self.bits if self.each == 1 else self.bits.repeat(self.each)

    def places(self, start: int, stop: int) -> NDArray[np.intp]:
        """Where the live weights of bits `start` to `stop` are, counted from the first weight of `start`."""
        found = np.flatnonzero(self.bits[start:stop])
        if self.each == 1:
            return found
        return (found[:, None] * self.each + np.arange(self.each)).reshape(-1)


class Encoding(Protocol):
    """How the mask of a layer becomes bytes.

    Masks come as (K, C, n) for every layer: a convolution's R x S window is flattened, a linear layer is (O, I, 1).
    """

    def bound(self, mask_KCn: Bits) -> float | None:
        """How many bits any code for masks of this structure needs at the least; None where the mask has it not."""
        ...

    def encode(self, mask_KCn: Bits, out: StreamWriter) -> float | None:
        """Write the mask, and return its `bound`; nothing is written where that is None."""
        ...

    def decode(self, shape: tuple[int, int, int], data: StreamReader) -> Alive:
        """The mask of this (K, C, n). Raises Damaged."""
        ...


ENCODINGS: Family[Encoding] = Family("encoding", "starfire_cli.formats.packed.encodings")


class EncodedMask(NamedTuple):
    """A mask in its shortest encoding, and the fewest bits that any structure it has allows."""

    name: str
    data: bytes
    bound_bits: float


def encode(mask_KCn: Bits, effort: str) -> EncodedMask:
    """The shortest encoding of a mask (of equals the first by name)."""
    tried = []
    for name in ENCODINGS.names():
        out = StreamWriter(effort)
        bits = _built(name).encode(mask_KCn, out)
        if bits is not None:
            tried.append(EncodedMask(name, out.getvalue(), bits))
    best = min(tried, key=lambda t: len(t.data))
    return best._replace(bound_bits=min(t.bound_bits for t in tried))


def bound_bits(mask_KCn: Bits) -> float:
    """The fewest bits that any structure of a mask allows; nothing is encoded."""
    found = (_built(name).bound(mask_KCn) for name in ENCODINGS.names())
    return min(bits for bits in found if bits is not None)


def decode(name: str, shape: tuple[int, ...], data: StreamReader) -> Alive:
    """The mask of a layer of `shape`. Raises Damaged."""
    try:
        encoding = _built(name)
    except BadOption as error:
        raise Damaged(str(error)) from None
    return encoding.decode(grid(shape), data)


@cache
def _built(name: str) -> Encoding:
    return ENCODINGS.build(name)


def grid(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A tensor's shape as (K, C, n): its first axis, its second, and the rest; one axis counts as C."""
    if len(shape) < 2:
        return 1, math.prod(shape), 1
    return shape[0], shape[1], math.prod(shape[2:])
