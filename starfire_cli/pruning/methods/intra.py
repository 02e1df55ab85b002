"""Intra-epoch pruning: window first, then whole kernels of what is left (paper, section 2.1.1, Algorithm 4).

The paper's `window_mask = generate_ck_sparsity_mask(...)` is read as the misprint of the window routine that its text
describes, and the kernel step takes just what the layer still lacks, so that the layer as a whole meets the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from starfire_cli.errors import BadOption
from starfire_cli.pruning.budget import ConvBudget, Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._conv_rules import ConvRules, kernel_count, kernels_for_rest, window_count
from starfire_cli.pruning.methods.window import check_max_nonzero


@METHODS.register("intra", "conv")
@dataclass(frozen=True, kw_only=True)
class Intra(ConvRules):
    """Windows lose a share of the threshold, whole kernels the rest; 1 x 1 convolutions follow the ck rule.

    Args:
        share: the part of the threshold that window pruning takes, in [0, 1].
        max_nonzero: at most this many weights stay in a 3 x 3 window once the era is over.
    """

    share: float = 0.5
    max_nonzero: int | None = None

    def __post_init__(self) -> None:
        check_max_nonzero(self.max_nonzero)
        check_share(self.share)

    def budget(self, layer: Layer, goal: Goal) -> ConvBudget | None:
        if layer.kind == "pointwise":  # a depthwise one is all its channels have: ck would take every weight
            return None if layer.depthwise else ConvBudget(0, kernel_count(layer, goal.threshold))
        if layer.depthwise:  # no whole depthwise kernel goes, so the windows take all of it
            return ConvBudget(window_count(layer, goal.threshold, self.max_nonzero, goal.progress), 0)
        now, final = self._counts(layer, goal), self._counts(layer, replace(goal, progress=1.0))
        # Each time the windows lose one more weight the kernels' share falls back, but the dead stay dead: without the
        # bound, kernels that went early would carry the layer past its target.
        return ConvBudget(now.in_window, min(now.kernels, final.kernels))

    def _counts(self, layer: Layer, goal: Goal) -> ConvBudget:
        in_window = window_count(layer, self.share * goal.threshold, self.max_nonzero, goal.progress)
        return ConvBudget(in_window, kernels_for_rest(layer, goal.threshold, in_window))


def check_share(share: float) -> None:
    """Raises BadOption unless `share` is a part of a whole."""
    if not 0 <= share <= 1:
        raise BadOption(f"share={share} is out of range; it is a part of the threshold, 0 to 1")
