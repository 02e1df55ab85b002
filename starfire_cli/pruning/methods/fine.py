"""Fine pruning: prunes single weights, all weights of the layer competing (paper, section 2.1.2)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._cuts import weight_cut
from starfire_cli.pruning.units import Budget


@METHODS.register("fine", "linear")
@dataclass(frozen=True, kw_only=True)
class Fine:
    """Prunes the smallest weights of the layer; every output neuron keeps at least one."""

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        return (weight_cut(layer, goal.threshold),)
