"""Intra-epoch pruning: cuts windows first, then whole kernels of what is left (paper, section 2.1.1, Algorithm 4).

The paper's `window_mask = generate_ck_sparsity_mask(...)` is read as the misprint of the window routine that its text
describes, and the kernel step takes just what the layer still lacks, so that the layer as a whole meets the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._cuts import (
    check_max_nonzero,
    check_share,
    kernel_cut_for_rest,
    pointwise_budget,
    window_cut,
)
from starfire_cli.pruning.units import Budget, Cut


@METHODS.register("intra", "conv")
@dataclass(frozen=True, kw_only=True)
class Intra:
    """Prunes a share of the threshold in windows, the rest as whole kernels; 1 x 1 convolutions follow the ck rule.

    Args:
        share: the part of the threshold that window pruning takes, in [0, 1].
        max_nonzero: at most this many weights stay in a 3 x 3 window once the era is over.
    """

    share: float = 0.5
    max_nonzero: int | None = None

    def __post_init__(self) -> None:
        check_max_nonzero(self.max_nonzero)
        check_share(self.share)

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        if layer.kind == "pointwise":
            return pointwise_budget(layer, goal)
        if layer.depthwise:  # no whole depthwise kernel goes, so the windows take all of it
            return (window_cut(layer, goal.threshold, self.max_nonzero, goal.progress),)
        (in_window, now), (_, final) = self._cuts(layer, goal), self._cuts(layer, replace(goal, progress=1.0))
        # Each time the windows lose one more weight the kernels' share falls back, but the dead stay dead: without the
        # bound, kernels that went early would carry the layer past its target.
        return in_window, min(now, final, key=lambda cut: cut.count)

    def _cuts(self, layer: Layer, goal: Goal) -> tuple[Cut, Cut]:
        cut = window_cut(layer, self.share * goal.threshold, self.max_nonzero, goal.progress)
        return cut, kernel_cut_for_rest(layer, goal.threshold, cut)
