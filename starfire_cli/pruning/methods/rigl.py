"""RigL, "rigging the lottery" (Evci et al., 2020, arXiv 1911.11134)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes, Rewire, SparseStart
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import SHAPED, check_choice, check_every, check_fraction
from starfire_cli.pruning.regrowth import Grow
from starfire_cli.pruning.removal import Swap


@METHODS.register("rigl", "network")
@dataclass(frozen=True, kw_only=True)
class RigL:
    """The weights of the smallest |w| go, and as many come back where |dL/dw| is largest, with the value 0.

    An evaluation takes the place of the optimizer's step, as in the authors' code; a weight that goes and comes back at
    once keeps its value. Published: ResNet50 on ImageNet, ERK, 80/90 %: 75.1/73.0; WRN-22-2 on CIFAR-10 at
    50/80/90/95 %: 94.2/93.6/92.9/91.8.

    Args:
        fraction: of the live weights that are swapped at first; it falls to 0 along a cosine (alpha).
        allocation: "erk", "er" or "uniform" (which leaves the first convolution dense).
        every: steps between evaluations (delta T); default 100, or a twentieth of the era where that is less,
            but at least 10.
    """

    fraction: float = 0.3
    allocation: str = "erk"
    every: int | None = None

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_choice("allocation", self.allocation, SHAPED)
        check_every(self.every)

    def axes(self) -> Axes:
        grow = Grow(by="gradient", keeps_value=True)
        return Axes(
            start=SparseStart(allocation=self.allocation),
            stages=(Rewire(removal=Swap(fraction=self.fraction), regrowth=grow),),
            every=self.every,
            replaces_step=True,
            span=(0.0, 0.75),
            dense_first=self.allocation == "uniform",
        )
