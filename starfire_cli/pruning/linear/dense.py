"""No linear layer is pruned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from starfire_cli.pruning.budget import Goal, LinearBudget
from starfire_cli.pruning.families import LINEAR_METHODS
from starfire_cli.pruning.layers import Layer


@LINEAR_METHODS.register("dense")
@dataclass(frozen=True, kw_only=True)
class Dense:
    """Nothing is pruned."""

    def budget(self, layer: Layer, goal: Goal) -> LinearBudget | None:
        return None

    def mask(self, layer: Layer, weight_OI: Tensor, alive_OI: Tensor, budget: LinearBudget) -> Tensor:
        return alive_OI.clone()
