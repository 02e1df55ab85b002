"""Group-wise brain damage: columns of the im2col matrix (Lebedev and Lempitsky, 2016, arXiv 1506.02515)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.budget import Goal, pruned
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.units import Budget, Cut


@METHODS.register("lebedev", "conv")
@dataclass(frozen=True, kw_only=True)
class Lebedev:
    """Prunes the columns of the layer with the smallest Euclidean norm; depthwise layers stay dense.

    A column is one place (c, r, s) in the windows of all filters: without it the matrix product of the convolution has
    one inner dimension less.
    """

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        if layer.depthwise:
            return None
        columns = layer.weights // (layer.shape[0] // layer.groups)
        return (Cut("K", "", pruned(columns, goal.threshold), reduce="norm"),)
