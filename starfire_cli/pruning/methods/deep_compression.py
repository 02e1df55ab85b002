"""The pruning step of Deep Compression (Han et al., 2015, arXiv 1506.02626 and 1510.00149)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from starfire_cli.pruning.axes import Axes, Rewire
from starfire_cli.pruning.layer_units import LayerUnits
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_every, check_positive
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.removal import Below, Rise


@METHODS.register("deep-compression", "network", "oneshot")
@dataclass(frozen=True, kw_only=True)
class DeepCompression:
    """All weights below s times the standard deviation of their layer's live weights go.

    Shared values (the second step) are `compress --values codebook`. Published: AlexNet 89 %, VGG-16 92 % of weights
    pruned without loss.

    Args:
        s: the factor, the same in all layers; by default the one that makes the network as sparse as the target asks,
            which is a competition of all weights by |w| / standard deviation.
        every: steps between evaluations; default 100, or a twentieth of the era where that is less.
    """

    of_training: ClassVar[tuple[str, ...]] = ("every",)

    s: float | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        if self.s is not None:
            check_positive("s", self.s)
        check_every(self.every)

    def axes(self) -> Axes:
        removal = Rise(allocation="global", score="standardised") if self.s is None else Below(threshold=self.threshold)
        return Axes(stages=(Rewire(removal=removal),), every=self.every, targeted=self.s is None)

    def threshold(self, units: LayerUnits, moment: Moment) -> float:
        """The threshold of a layer: it rises to s standard deviations of its live weights."""
        assert self.s is not None
        return self.s * moment.progress * units.deviation
