"""CK pruning: of the K kernels that read one input channel, whole kernels go (paper, section 2.1.1, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from starfire_cli.pruning.budget import ConvBudget, Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._conv_rules import ConvRules, kernel_count


@METHODS.register("ck", "conv")
@dataclass(frozen=True, kw_only=True)
class CK(ConvRules):
    """For each input channel, the kernels whose largest weight is smallest go.

    A depthwise kernel is all its channel has, so depthwise layers stay dense.

    Args:
        depthwise: let all depthwise kernels of a layer compete with one another instead of keeping them dense.
    """

    depthwise: bool = False

    def budget(self, layer: Layer, goal: Goal) -> ConvBudget | None:
        if layer.depthwise and not self.depthwise:
            return None
        return ConvBudget(0, kernel_count(self.seen(layer), goal.threshold))

    def seen(self, layer: Layer) -> Layer:
        """A depthwise layer, if it is to be pruned at all, as K kernels that read one channel."""
        return replace(layer, groups=1) if layer.depthwise else layer
