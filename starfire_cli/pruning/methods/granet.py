"""GraNet, gradual pruning with zero-cost neuroregeneration (Liu et al., 2021, arXiv 2106.10404)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes, Rewire, SparseStart
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_every, check_fraction
from starfire_cli.pruning.regrowth import Grow
from starfire_cli.pruning.removal import Rise, Swap


@METHODS.register("granet", "network")
@dataclass(frozen=True, kw_only=True)
class GraNet:
    """The sparsity rises along a cubic, all weights competing; after each rise layers swap weights by |w| and |dL/dw|.

    As in the authors' code the optimizer makes its step too, and what a rise takes may come back in the swap, from 0.
    Swaps end with the rise; theirs go on until training ends.

    Published: ResNet50 on ImageNet at 80/90 %: 76.0/74.5.

    Args:
        initial: the sparsity at the start, by ERK; 0 is dense-to-sparse, 0.5 the paper's sparse-to-sparse.
        fraction: of each layer's live weights that are swapped after a rise, at first; it falls along a cosine.
        end: what the fraction falls to.
        every: steps between evaluations; default 100, or a twentieth of the era where that is less (the paper: 1000 on
            CIFAR, 4000 on ImageNet).
    """

    initial: float = 0.0
    fraction: float = 0.5
    end: float = 0.005
    every: int | None = None

    def __post_init__(self) -> None:
        check_fraction("initial", self.initial)
        check_fraction("fraction", self.fraction)
        check_fraction("end", self.end)
        check_every(self.every)

    def axes(self) -> Axes:
        return Axes(
            start=SparseStart(sparsity=self.initial) if self.initial else None,
            stages=(
                Rewire(removal=Rise(allocation="global", initial=self.initial)),
                Rewire(
                    removal=Swap(fraction=self.fraction, end=self.end), regrowth=Grow(by="gradient", keeps_value=True)
                ),
            ),
            every=self.every,
            ramp="cubic",
        )
