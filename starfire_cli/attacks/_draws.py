"""Which random numbers an image gets: a function of seed and image number alone, whatever the batches.

A counter is hashed (a 32-bit integer mixer) in place of stepping a generator: every pixel finds its number by itself,
on any device, with equal bits; being stopped and taken up again changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

# Odd numbers as signed 32-bit ones: the golden ratio, and the factors of a mixer (fold, multiply, fold, multiply, fold)
# in which every bit of the input moves every bit of the output.
_GOLDEN = 0x9E3779B9 - (1 << 32)
_FIRST = 0x7FEB352D
_SECOND = 0x846CA68B - (1 << 32)


@dataclass(frozen=True, kw_only=True)
class AttackDraws:
    """Random numbers for the N images of a batch.

    Args:
        seed: 0 or more.
        index_N: the images' own numbers, int64, on the images' device.
    """

    seed: int
    index_N: Tensor

    def uniform(self, shape: tuple[int, ...], stream: int = 0) -> Tensor:
        """Float32 in [0, 1), (N, *shape); another `stream` gives other numbers."""
        device, count = self.index_N.device, math.prod(shape)
        first_N1, second_N1 = (self._key(2 * stream + part) for part in (0, 1))
        place_P = torch.arange(count, dtype=torch.int32, device=device) * _GOLDEN
        hashed_NP = place_P ^ first_N1
        # In place and in 32 bits: it is memory that costs here. Two keys, since with one an image's numbers could be
        # another's, shifted.
        scratch_NP = torch.empty_like(hashed_NP)
        _fold(hashed_NP, 16, scratch_NP).mul_(_FIRST).add_(second_N1)
        _fold(hashed_NP, 15, scratch_NP).mul_(_SECOND)
        _fold(hashed_NP, 16, scratch_NP)
        torch.bitwise_right_shift(hashed_NP, 8, out=scratch_NP)
        return scratch_NP.bitwise_and_(0xFFFFFF).float().mul_(2.0**-24).view(-1, *shape)

    def normal(self, shape: tuple[int, ...], stream: int = 0) -> Tensor:
        """Float32 standard normal, (N, *shape) (Box and Muller)."""
        radius = (-2 * torch.log1p(-self.uniform(shape, 2 * stream))).sqrt()
        return radius * torch.cos(2 * torch.pi * self.uniform(shape, 2 * stream + 1))

    def take(self, chosen_N: Tensor) -> AttackDraws:
        """The draws of some images of the batch: `chosen_N` is a bool mask or positions."""
        return AttackDraws(seed=self.seed, index_N=self.index_N[chosen_N])

    def _key(self, stream: int) -> Tensor:
        """A 32-bit key for each image, (N, 1)."""
        key_N = torch.zeros(len(self.index_N), dtype=torch.int32, device=self.index_N.device)
        scratch_N = torch.empty_like(key_N)
        for part in (self.seed, self.seed >> 32, stream, self.index_N, self.index_N >> 32):
            key_N += _low(part)
            _fold(key_N, 16, scratch_N).mul_(_FIRST)
            _fold(key_N, 15, scratch_N).mul_(_SECOND)
            _fold(key_N, 16, scratch_N)
        return key_N.view(-1, 1)


def _fold(x: Tensor, by: int, scratch: Tensor) -> Tensor:
    """`x ^= x >> by`, the shift without the sign; in place."""
    torch.bitwise_right_shift(x, by, out=scratch)
    x ^= scratch.bitwise_and_((1 << (32 - by)) - 1)
    return x


@overload
def _low(number: int) -> int: ...
@overload
def _low(number: Tensor) -> Tensor: ...
def _low(number: int | Tensor) -> int | Tensor:
    """The lowest 32 bits, as a signed 32-bit number holds them."""
    low = (number + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
    return low if isinstance(low, int) else low.int()
