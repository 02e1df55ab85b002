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
class WeightTable:
    """Entries by block of source channels, channel of the target, place in the kernel, source channel.

    Args:
        steps: blocks of source channels.
        at_once: source channels in each.
        channels: of the target.
        segments: (steps * channels * groups + 1,) where each begins.
        entries: (n,) the source channel.
        where: (n,) or (n * R * S,) places in the weight's memory, in floats.
    """

    steps: int
    at_once: int
    channels: int
    segments: Ints
    entries: Ints
    where: Ints

    @property
    def weights(self) -> int:
        """Floats that are picked up."""
        return len(self.where)


class LiveKernels:
    """The live weights of a convolution, single ones or whole kernels with any.

    Args:
        mask_KCRS: bool (K, C / groups, R, S), True where a weight lives.
        strides: of the weight in memory, in floats.
        groups: of the convolution.
        whole: entries are kernels; else single weights.
    """

    def __init__(self, mask_KCRS: Tensor, strides: tuple[int, ...], groups: int, *, whole: bool) -> None:
        K, C, R, S = mask_KCRS.shape
        alive = mask_KCRS.detach().cpu().contiguous().numpy().reshape(K, C, R * S)
        # Groups of entries are whole kernels, or places in them: (K, places, C).
        entries: Any = alive.any(2, keepdims=True) if whole else alive
        self._alive = np.ascontiguousarray(entries.transpose(0, 2, 1))
        self._groups, self._strides = groups, strides
        self._places = (np.arange(R)[:, None] * strides[2] + np.arange(S) * strides[3]).reshape(-1)
        self._whole = whole

    def forward(self, at_once: int) -> WeightTable:
        """Ordered for the output: by output channel, over `at_once` input channels a step."""
        K = len(self._alive)
        if self._groups > 1:  # of few channels each
            k, place, c = np.nonzero(self._alive)
            return self._table(k, place, self._absolute(k, c), (k, c), 0, 1, K, np.zeros_like(k))
        return self._blocks(self._alive, at_once, flipped=False)

    def backward(self, at_once: int) -> WeightTable:
        """Ordered for the input's gradient: by input channel, over `at_once` output channels a step."""
        K, places, C = self._alive.shape
        if self._groups > 1:
            k, place, c = np.nonzero(self._alive)
            target = self._absolute(k, c)
            order = np.argsort((target * places + place) * K + k)
            k, place, c, target = k[order], place[order], c[order], target[order]
            return self._table(target, place, k, (k, c), 0, 1, C * self._groups, np.zeros_like(k))
        return self._blocks(self._alive.transpose(2, 1, 0), at_once, flipped=True)

    def _absolute(self, k: Any, c: Any) -> Any:
        K, _, C = self._alive.shape
        return c + k // (K // self._groups) * C

    def _blocks(self, alive: Any, at_once: int, *, flipped: bool) -> WeightTable:
        targets, _, sources = alive.shape
        found = []
        for number, start in enumerate(range(0, sources, at_once)):
            target, place, source = np.nonzero(alive[:, :, start : start + at_once])
            found.append((target, place, source + start, np.full_like(target, number)))
        target, place, source, step = (np.concatenate(parts) for parts in zip(*found, strict=True))
        k, c = (source, target) if flipped else (target, source)
        return self._table(target, place, source, (k, c), min(at_once, sources), len(found), targets, step)

    def _table(
        self,
        target: Any,
        place: Any,
        source: Any,
        weight: tuple[Any, Any],
        at_once: int,
        steps: int,
        targets: int,
        step: Any,
    ) -> WeightTable:
        groups = self._alive.shape[1]
        segment = (step * targets + target) * groups + place
        starts = np.zeros(steps * targets * groups + 1, np.int32)
        np.cumsum(np.bincount(segment, minlength=steps * targets * groups), out=starts[1:])
        where = weight[0] * self._strides[0] + weight[1] * self._strides[1]
        inner = (where[:, None] + self._places).reshape(-1) if self._whole else where + self._places[place]
        return WeightTable(
            steps=steps,
            at_once=at_once,
            channels=targets,
            segments=starts,
            entries=np.ascontiguousarray(source, np.int32),
            where=np.ascontiguousarray(inner, np.int32),
        )
