"""The live weights of a layer in the order in which the training loops go over them.

Tables say which weights live, not what they are worth: they are made anew when the masks change, and values are picked
up from the dense weight at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Entries by block of source channels, channel of the target, group of places in the kernel, source channel.

    Args:
        steps: blocks of source channels.
        channels: of the target.
        segments: (steps * channels * groups + 1,) where each begins.
        entries: (n,) the source channel.
        where: (n,) or (n * R * S,) places in the weight's memory, in floats.
    """

    steps: int
    channels: int
    segments: Ints
    entries: Ints
    where: Ints

    @property
    def weights(self) -> int:
        """Floats that are picked up."""
        return len(self.where)


@dataclass(frozen=True, kw_only=True)
class LiveKernels:
    """The live weights of a convolution.

    Args:
        k: (n,) output channel of each entry.
        c: (n,) input channel, counted over all groups.
        tap: (n,) place in the kernel; None where entries are whole kernels.
        where: (n, 1) or (n, R * S) places in the weight's memory.
        channels: output and input channels.
        taps: R * S.
    """

    k: Any
    c: Any
    tap: Any
    where: Any
    channels: tuple[int, int]
    taps: int

    @classmethod
    def of(cls, mask_KCRS: Tensor, strides: tuple[int, ...], groups: int, *, whole: bool) -> LiveKernels:
        """Of a mask, True where a weight lives.

        Args:
            mask_KCRS: bool (K, C / groups, R, S).
            strides: of the weight in memory, in floats.
            groups: of the convolution.
            whole: entries are kernels with any live weight; else single live weights.
        """
        K, C, R, S = mask_KCRS.shape
        alive = mask_KCRS.detach().cpu().contiguous().numpy()
        places = (np.arange(R)[:, None] * strides[2] + np.arange(S) * strides[3]).reshape(-1)
        if whole:
            k, c = np.nonzero(alive.reshape(K, C, R * S).any(2))
            tap, inner = None, places[None, :]
        else:
            k, c, tap = np.nonzero(alive.reshape(K, C, R * S))
            inner = places[tap][:, None]
        where = (k * strides[0] + c * strides[1])[:, None] + inner
        return cls(
            k=k, c=c + k // (K // groups) * C, tap=tap, where=where, channels=(K, C * groups), taps=R * S
        )

    def forward(self, at_once: int) -> Table:
        """Ordered for the output: by output channel, over `at_once` input channels a step."""
        return self._ordered(self.k, self.c, self.channels[0], self.channels[1], at_once)

    def backward(self, at_once: int) -> Table:
        """Ordered for the input's gradient: by input channel, over `at_once` output channels a step."""
        return self._ordered(self.c, self.k, self.channels[1], self.channels[0], at_once)

    def _ordered(self, target: Any, source: Any, targets: int, sources: int, at_once: int) -> Table:
        steps = -(-sources // at_once)
        groups = 1 if self.tap is None else self.taps
        segment = source // at_once * targets + target
        if self.tap is not None:
            segment = segment * groups + self.tap
        order = np.argsort(segment * sources + source, kind="stable")
        starts = np.zeros(steps * targets * groups + 1, np.int32)
        np.cumsum(np.bincount(segment, minlength=steps * targets * groups), out=starts[1:])
        return Table(
            steps=steps,
            channels=targets,
            segments=starts,
            entries=np.ascontiguousarray(source[order], np.int32),
            where=np.ascontiguousarray(self.where[order].reshape(-1), np.int32),
        )
