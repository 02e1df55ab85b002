"""Window pruning: in each R x S window the smallest weights go (paper, section 2.1.1, Algorithm 3)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.errors import BadOption
from starfire_cli.pruning.budget import ConvBudget, Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._conv_rules import ConvRules, kernel_count, window_count


@METHODS.register("window", "conv")
@dataclass(frozen=True, kw_only=True)
class Window(ConvRules):
    """The smallest weights of each window go; 1 x 1 convolutions follow the ck rule.

    Args:
        max_nonzero: at most this many weights stay in a 3 x 3 window once the era is over.
    """

    max_nonzero: int | None = None

    def __post_init__(self) -> None:
        check_max_nonzero(self.max_nonzero)

    def budget(self, layer: Layer, goal: Goal) -> ConvBudget | None:
        if layer.kind == "pointwise":  # a depthwise one is all its channels have: ck would take every weight
            return None if layer.depthwise else ConvBudget(0, kernel_count(layer, goal.threshold))
        return ConvBudget(window_count(layer, goal.threshold, self.max_nonzero, goal.progress), 0)


def check_max_nonzero(max_nonzero: int | None) -> None:
    """Raises BadOption unless a 3 x 3 window can keep that many."""
    if max_nonzero is not None and not 1 <= max_nonzero <= 9:
        raise BadOption(f"max_nonzero={max_nonzero} is out of range; a 3x3 window keeps 1 to 9 weights")
