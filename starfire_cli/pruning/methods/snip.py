"""SNIP, single-shot network pruning (Lee et al., 2019, arXiv 1810.02340)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes, SparseStart
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_choice


@METHODS.register("snip", "network")
@dataclass(frozen=True, kw_only=True)
class Snip:
    """Before the first step the weights of the smallest |w dL/dw| on one batch go; then the mask is fixed.

    Published (RigL's paper, ResNet50 on ImageNet at 80/90 %): 72.0/67.2.

    Args:
        pool: "global", as in the paper: weights compete in the network; "layer": in their layer.
    """

    pool: str = "global"

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, ("global", "layer"))

    def axes(self) -> Axes:
        allocation = "uniform" if self.pool == "layer" else "global"
        return Axes(start=SparseStart(allocation=allocation, score="sensitivity"), span=(0.0, 0.75))
