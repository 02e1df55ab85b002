"""Gradual magnitude pruning (Zhu and Gupta, 2017, arXiv 1710.01878)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from starfire_cli.pruning.allocation import ALLOCATIONS
from starfire_cli.pruning.axes import Axes, Rewire
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_choice, check_every, check_fraction, check_ramp
from starfire_cli.pruning.removal import Rise


@METHODS.register("gmp", "network", "oneshot")
@dataclass(frozen=True, kw_only=True)
class GradualMagnitudePruning:
    """Single weights go by |w| as the sparsity rises along a cubic; what is dead stays dead.

    Published: ResNet50 on ImageNet at 80/90/95 %: 75.6/73.9/70.6 (Gale et al., 2019, arXiv 1902.09574).

    Args:
        pool: "layer": weights compete in their layer; "global": in the network; "erk", "er": shared out by shapes.
        initial: the sparsity that the rise begins at.
        ramp: "cubic" (equation 1), "linear" or "cosine".
        every: steps between evaluations; default 100, or a twentieth of the era where that is less.
    """

    of_training: ClassVar[tuple[str, ...]] = ("initial", "ramp", "every")

    pool: str = "layer"
    initial: float = 0.0
    ramp: str = "cubic"
    every: int | None = None

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, ("layer", *(name for name in ALLOCATIONS if name != "uniform")))
        check_fraction("initial", self.initial)
        check_ramp(self.ramp)
        check_every(self.every)

    def axes(self) -> Axes:
        rise = Rise(allocation="uniform" if self.pool == "layer" else self.pool, initial=self.initial)
        return Axes(stages=(Rewire(removal=rise),), every=self.every, ramp=self.ramp)
