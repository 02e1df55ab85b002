"""CK pruning: prunes the weakest of the K kernels that read one input channel (paper, section 2.1.1, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.budget import Goal, pruned
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._cuts import kernel_cut
from starfire_cli.pruning.units import Budget, Cut


@METHODS.register("ck", "conv")
@dataclass(frozen=True, kw_only=True)
class CK:
    """Prunes, of each input channel, the kernels whose largest weight is smallest.

    A depthwise kernel is all its channel has, so depthwise layers stay dense.

    Args:
        depthwise: let all depthwise kernels of a layer compete with one another instead of keeping them dense.
    """

    depthwise: bool = False

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        if not layer.depthwise:
            return (kernel_cut(layer, goal.threshold),)
        return (Cut("RS", "", pruned(layer.shape[0], goal.threshold)),) if self.depthwise else None
