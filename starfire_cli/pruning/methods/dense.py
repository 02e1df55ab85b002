"""No convolution is pruned: the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from starfire_cli.pruning.budget import ConvBudget, Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS


@METHODS.register("dense", "conv", "linear")
@dataclass(frozen=True, kw_only=True)
class Dense:
    """Nothing is pruned."""

    def budget(self, layer: Layer, goal: Goal) -> ConvBudget | None:
        return None

    def mask(self, layer: Layer, weight_KCRS: Tensor, alive_KCRS: Tensor, budget: ConvBudget) -> Tensor:
        return alive_KCRS.clone()
