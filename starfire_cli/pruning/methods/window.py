"""Window pruning: prunes the smallest weights of each R x S window (paper, section 2.1.1, Algorithm 3)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._cuts import check_max_nonzero, pointwise_budget, window_cut
from starfire_cli.pruning.units import Budget


@METHODS.register("window", "conv")
@dataclass(frozen=True, kw_only=True)
class Window:
    """Prunes the smallest weights of each window; 1 x 1 convolutions follow the ck rule.

    Args:
        max_nonzero: at most this many weights stay in a 3 x 3 window once the era is over.
    """

    max_nonzero: int | None = None

    def __post_init__(self) -> None:
        check_max_nonzero(self.max_nonzero)

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        if layer.kind == "pointwise":
            return pointwise_budget(layer, goal)
        return (window_cut(layer, goal.threshold, self.max_nonzero, goal.progress),)
