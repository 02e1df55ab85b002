"""The live weights of a layer, packed in the order in which the loops use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bits = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


def in_memory(tensor: Tensor) -> Tensor:
    """The tensor with its values where it lies: a negated view lies elsewhere in sign, a zero tensor nowhere."""
    return tensor.clone() if tensor._is_zerotensor() else tensor.resolve_neg()


@dataclass(frozen=True, kw_only=True)
class LiveWeights:
    """A convolution's weights without its zeros, ordered by output channel, input channel, place in the kernel.

    Args:
        shape: (K, C / groups, R, S).
        groups: of the convolution.
        alive: (ceil(K * C / groups * R * S / 8),) a bit for each weight of the dense layer.
        values: (n,) float32.
        bias: (K,) float32.
    """

    shape: tuple[int, int, int, int]
    groups: int
    alive: Bits
    values: Floats
    bias: Floats

    @classmethod
    def of(cls, weight_KCRS: Tensor, bias_K: Tensor | None, groups: int) -> LiveWeights:
        """The live weights of a dense weight, in float32."""
        K, C, R, S = weight_KCRS.shape
        flat = in_memory(weight_KCRS.detach().float()).contiguous().flatten().numpy()
        alive = flat != 0
        bias = np.zeros(K, np.float32) if bias_K is None else in_memory(bias_K.detach().float()).numpy().copy()
        return cls(shape=(K, C, R, S), groups=groups, alive=np.packbits(alive), values=flat[alive], bias=bias)

    @property
    def where(self) -> npt.NDArray[np.int64]:
        """The positions of the live weights in the dense weight, (n,)."""
        return np.flatnonzero(np.unpackbits(self.alive, count=int(np.prod(self.shape))))

    @property
    def density(self) -> float:
        """The share of weights that are not zero."""
        return len(self.values) / max(1, int(np.prod(self.shape)))

    @property
    def kernels(self) -> int:
        """The number of R x S kernels with at least one weight that is not zero."""
        _, _, R, S = self.shape
        return len(np.unique(self.where // (R * S)))

    def dense(self) -> Tensor:
        """The dense weight, (K, C / groups, R, S)."""
        flat = np.zeros(int(np.prod(self.shape)), np.float32)
        flat[self.where] = self.values
        return torch.from_numpy(flat).reshape(self.shape)

    def places(self) -> tuple[Any, Any, Any, Any]:
        """Output channel, input channel (counted over all groups), row and column in the kernel, of each weight."""
        K, C, R, S = self.shape
        pair, tap = np.divmod(self.where, R * S)
        k, c = np.divmod(pair, C)
        return k, c + (k // (K // self.groups)) * C, tap // S, tap % S


@dataclass(frozen=True, kw_only=True)
class LoopWeights:
    """Entries in the order of a loop: by step over the input channels, then by output channel.

    Args:
        steps: how many.
        segments: (steps * K + 1,) where each begins.
        offsets: (entries,) bytes from a tile's start to the entry's input.
        weights: (entries,) or (entries * R * S,).
    """

    steps: int
    segments: Ints
    offsets: Ints
    weights: Floats


def order_taps(live: LiveWeights, reach: Any, at_once: int) -> LoopWeights:
    """Order single weights for the loop `taps`.

    Args:
        live: the weights.
        reach: (channels, rows, columns) to bytes from a tile's start; arrays in, array out.
        at_once: input channels a step.
    """
    k, c, y, x = live.places()
    return _ordered(live, k, c, reach(c, y, x), live.values, 1, at_once)


def order_kernels(live: LiveWeights, reach: Any, at_once: int) -> LoopWeights:
    """Order whole kernels with a weight that is not zero for the loop `kernels`; arguments as for `order_taps`."""
    K, C, R, S = live.shape
    pair, tap = np.divmod(live.where, R * S)
    kernels, row = np.unique(pair, return_inverse=True)
    whole = np.zeros((len(kernels), R * S), np.float32)
    whole[row, tap] = live.values
    k, c = np.divmod(kernels, C)
    c = c + (k // (K // live.groups)) * C
    zero = np.zeros_like(c)
    return _ordered(live, k, c, reach(c, zero, zero), whole, R * S, at_once)


def _ordered(live: LiveWeights, k: Any, c: Any, offsets: Any, weights: Any, size: int, at_once: int) -> LoopWeights:
    K, C = live.shape[0], live.shape[1] * live.groups
    steps = -(-C // at_once) if live.groups == 1 else 1  # a group's channels are few as they are
    segment = (c // at_once if steps > 1 else 0) * K + k
    order = np.argsort(segment, kind="stable")
    starts = np.zeros(steps * K + 1, np.int32)
    np.cumsum(np.bincount(segment, minlength=steps * K), out=starts[1:])
    return LoopWeights(
        steps=steps,
        segments=starts,
        offsets=np.ascontiguousarray(offsets[order], np.int32),
        weights=np.ascontiguousarray(weights[order].reshape(-1), np.float32),
    )
