"""Sparse momentum, "sparse networks from scratch" (Dettmers and Zettlemoyer, 2019, arXiv 1907.04840)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes, Rewire, SparseStart
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import SHAPED, check_choice, check_every, check_fraction
from starfire_cli.pruning.regrowth import Grow
from starfire_cli.pruning.removal import Swap


@METHODS.register("snfs", "network")
@dataclass(frozen=True, kw_only=True)
class SparseMomentum:
    """The weights of the smallest |w| go, and come back where the momentum is largest, in layers by their momentum.

    Published (WRN-28-2 on CIFAR-10 at 50/70/90 %): 94.75/94.58/93.61.

    Args:
        fraction: of the live weights that are swapped at first; it falls to 0 along a cosine.
        allocation: at the start: "uniform" (which leaves the first convolution dense), "erk" or "er".
        every: steps between evaluations; default 100, or a twentieth of the era where that is less (the paper: an
            epoch).
    """

    fraction: float = 0.5
    allocation: str = "uniform"
    every: int | None = None

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_choice("allocation", self.allocation, SHAPED)
        check_every(self.every)

    def axes(self) -> Axes:
        grow = Grow(by="momentum", shared="momentum")
        return Axes(
            start=SparseStart(allocation=self.allocation),
            stages=(Rewire(removal=Swap(fraction=self.fraction), regrowth=grow),),
            every=self.every,
            span=(0.0, 0.95),
            dense_first=self.allocation == "uniform",
        )
