"""Static sparse training: a random mask, fixed before the first step (the control of Evci et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes, SparseStart
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import SHAPED, check_choice


@METHODS.register("static", "network")
@dataclass(frozen=True, kw_only=True)
class Static:
    """Random weights are dead from the start and stay so.

    Published (arXiv 1911.11134): WRN-22-2 on CIFAR-10 at 50/80/90/95 %, ERK: 94.1/92.9/91.5/89.0.

    Args:
        allocation: "erk", "er" or "uniform" (which leaves the first convolution dense).
    """

    allocation: str = "erk"

    def __post_init__(self) -> None:
        check_choice("allocation", self.allocation, SHAPED)

    def axes(self) -> Axes:
        start = SparseStart(allocation=self.allocation)
        return Axes(start=start, span=(0.0, 0.75), dense_first=self.allocation == "uniform")
