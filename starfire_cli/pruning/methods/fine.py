"""Fine pruning: all weights of the layer compete one by one (paper, section 2.1.2)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.budget import Goal, LinearBudget, pruned
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._linear_rules import LinearRules


@METHODS.register("fine", "linear")
@dataclass(frozen=True, kw_only=True)
class Fine(LinearRules):
    """The smallest weights of the layer go; every output neuron keeps at least one."""

    def budget(self, layer: Layer, goal: Goal) -> LinearBudget | None:
        return LinearBudget(tiles=0, weights=pruned(layer.weights, goal.threshold), tile=1)
