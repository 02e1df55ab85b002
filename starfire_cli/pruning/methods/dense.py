"""No pruning: the dense baseline."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.units import Budget


@METHODS.register("dense", "conv", "linear")
@dataclass(frozen=True, kw_only=True)
class Dense:
    """Prunes nothing."""

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        return None
