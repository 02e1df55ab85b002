"""Granularities of pruning: weights, rows, kernels or filters of a layer (Mao et al., 2017, arXiv 1705.08922)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from starfire_cli.errors import unknown
from starfire_cli.pruning.budget import Goal, pruned
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.units import Budget, Cut

GRAINS = {"weight": "", "row": "S", "kernel": "RS", "filter": "CRS"}


@METHODS.register("mao", "conv")
@dataclass(frozen=True, kw_only=True)
class Mao:
    """Prunes the units of the layer with the smallest sum of |w|; depthwise layers stay dense.

    The paper prunes and retrains in turns, each layer to a density from a sensitivity scan.

    Published: at equal accuracy single weights can be sparsest, then rows, kernels, filters.

    Args:
        grain: "weight", "row" (of a window), "kernel" or "filter".
    """

    grain: str = "weight"

    def __post_init__(self) -> None:
        if self.grain not in GRAINS:
            raise unknown("grain", self.grain, GRAINS)

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        if layer.depthwise:
            return None
        cut = Cut(GRAINS[self.grain], "", 0, reduce="max" if self.grain == "weight" else "sum")
        return (replace(cut, count=pruned(cut.competitors(layer.shape, layer.groups), goal.threshold)),)
