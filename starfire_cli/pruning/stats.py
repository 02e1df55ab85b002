"""Sparsity statistics of a layer's mask: the counts in one row of the per-layer table (paper, figure 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from starfire_cli.pruning.layers import Layer


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """One row of the per-layer table, counted from the mask.

    Args:
        layer: whose numbers these are.
        zeros: dead weights.
        dead_kernels: kernels with nothing alive (0 for linear layers).
        dead_outputs: output channels or neurons with nothing alive.
        dead_inputs: input channels (all groups together) or inputs that nothing alive reads.
        per_window: how many windows keep 0, 1, ... R * S weights; empty unless the layer has windows.
    """

    layer: Layer
    zeros: int
    dead_kernels: int
    dead_outputs: int
    dead_inputs: int
    per_window: tuple[int, ...] = ()

    @property
    def sparsity(self) -> float:
        """Dead weights over all weights of the layer."""
        return self.zeros / self.layer.weights


def layer_stats(layer: Layer, alive: Tensor) -> LayerStats:
    """Count one layer's mask, bool, of the layer's shape, on the CPU."""
    kept_KC = kept_in_kernels(layer, alive)
    dead_KC = kept_KC == 0
    K, C = kept_KC.shape
    by_group = dead_KC.reshape(layer.groups, K // layer.groups, C)
    counts = (
        np.bincount(kept_KC.reshape(-1), minlength=layer.window + 1) if layer.kind == "window" else np.zeros(0, int)
    )
    return LayerStats(
        layer=layer,
        zeros=layer.weights - int(np.count_nonzero(alive.numpy())),
        dead_kernels=int(np.count_nonzero(dead_KC)) if layer.kind != "linear" else 0,
        dead_outputs=int(dead_KC.all(1).sum()),
        dead_inputs=int(by_group.all(1).sum()),
        per_window=tuple(counts.tolist()),
    )


def kept_in_kernels(layer: Layer, alive: Tensor) -> NDArray[Any]:
    """The number of weights that each kernel keeps, (K, C); a linear layer's kernels are its weights, (O, I)."""
    K, C = layer.shape[:2]
    window = layer.window
    bits = alive.contiguous().numpy().reshape(K * C, window).view(np.uint8)
    # Adding R * S columns is many times faster than summing K * C short rows.
    kept: NDArray[Any] = bits[:, 0].astype(np.uint8 if window < 256 else np.int64)
    for place in range(1, window):
        kept += bits[:, place]
    return kept.reshape(K, C)


def sparsity(layers: Sequence[Layer], zeros: Mapping[str, int], parameters: int) -> tuple[float, float]:
    """Dead weights over prunable weights and over all `parameters`; `zeros` is keyed like masks."""
    dead = sum(zeros.values())
    return dead / max(1, sum(layer.weights for layer in layers)), dead / max(1, parameters)
