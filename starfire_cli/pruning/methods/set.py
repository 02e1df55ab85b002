"""Sparse evolutionary training (Mocanu et al., 2018, arXiv 1707.04780)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes, Rewire, SparseStart
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import SHAPED, check_choice, check_every, check_fraction
from starfire_cli.pruning.regrowth import Grow
from starfire_cli.pruning.removal import Swap


@METHODS.register("set", "network")
@dataclass(frozen=True, kw_only=True)
class SparseEvolutionaryTraining:
    """Weights near zero go, and as many come back at random in the same layer, with the value 0.

    The paper rewires after each epoch and takes Erdos-Renyi counts of fully connected layers; `every` and
    `allocation` default to the setting in which RigL's paper compares it on CNNs.
    Published (arXiv 1902.05967, WRN-28-2 on CIFAR-10 at 50/70/90 %): 94.76/94.40/93.28.

    Args:
        fraction: of the live weights that go each time (zeta).
        by_sign: take it of the positive weights nearest zero and of the negative ones, each by itself, as the paper;
            a weight that is 0 counts among the negative.
        anneal: "constant", or "cosine" to 0 at the era's end.
        allocation: "erk", "er" or "uniform" (which leaves the first convolution dense).
        every: steps between evaluations; default 100, or a twentieth of the era where that is less.
    """

    fraction: float = 0.3
    by_sign: bool = True
    anneal: str = "constant"
    allocation: str = "erk"
    every: int | None = None

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_choice("anneal", self.anneal, ("constant", "cosine"))
        check_choice("allocation", self.allocation, SHAPED)
        check_every(self.every)

    def axes(self) -> Axes:
        swap = Swap(fraction=self.fraction, anneal=self.anneal, by_sign=self.by_sign)
        return Axes(
            start=SparseStart(allocation=self.allocation),
            stages=(Rewire(removal=swap, regrowth=Grow(by="random")),),
            every=self.every,
            span=(0.0, 0.75),
            dense_first=self.allocation == "uniform",
        )
