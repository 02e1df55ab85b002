"""What a layer's weights and mask say about its sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
    """Count one layer's mask, bool, of the layer's shape."""
    zeros = layer.weights - int(alive.sum())
    if layer.kind == "linear":
        dead_outputs, dead_inputs = int((~alive.any(1)).sum()), int((~alive.any(0)).sum())
        return LayerStats(layer=layer, zeros=zeros, dead_kernels=0, dead_outputs=dead_outputs, dead_inputs=dead_inputs)
    kept_KC = alive.flatten(2).sum(-1)
    K, C = kept_KC.shape
    by_group = kept_KC.reshape(layer.groups, K // layer.groups, C)
    return LayerStats(
        layer=layer,
        zeros=zeros,
        dead_kernels=int((kept_KC == 0).sum()),
        dead_outputs=int((kept_KC == 0).all(1).sum()),
        dead_inputs=int((by_group == 0).all(1).sum()),
        per_window=tuple(torch.bincount(kept_KC.flatten(), minlength=layer.window + 1).tolist())
        if layer.kind == "window"
        else (),
    )


def sparsity(layers: Sequence[Layer], zeros: dict[str, int], parameters: int) -> tuple[float, float]:
    """Dead weights over prunable weights and over all `parameters`; `zeros` is keyed like masks."""
    dead = sum(zeros.values())
    return dead / max(1, sum(layer.weights for layer in layers)), dead / max(1, parameters)
