"""Structured sparsity learning, SSL (Wen et al., 2016, arXiv 1608.03665)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes
from starfire_cli.pruning.lasso import CHANNEL, COLUMN, FILTER, LAYER, Lasso
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_choice, check_not_negative

UNITS = {"filter": FILTER, "channel": CHANNEL, "shape": COLUMN, "depth": LAYER}


@METHODS.register("ssl", "network")
@dataclass(frozen=True, kw_only=True)
class StructuredSparsityLearning:
    """Group lasso on units; those that are zero when the era ends are dead for good, and the rest is fine-tuned without
    the penalty.

    Smaller weights than `threshold` are set to zero after every step and may come back until then. There is no target.
    The paper starts from a trained network, with a tenth of its learning rate: `--init`, `--lr`. Published: AlexNet's
    convolutions 5.1 times as fast on a CPU; ResNet-20 on CIFAR-10 with 18 layers left 91.25 to 92.60 %.

    Args:
        units: "filter", "channel" (inputs), "shape" (columns of the im2col matrix), "depth" (whole layers, of residual
            branches), or several as in filter+channel.
        strength: what the sum of norms is multiplied with; the authors' example for CIFAR-10 has 0.003.
        threshold: below which |w| is set to zero.
    """

    units: str = "filter+channel"
    strength: float = 0.003
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        for unit in self.units.split("+"):
            check_choice("unit", unit, UNITS)
        check_not_negative("strength", self.strength)
        check_not_negative("threshold", self.threshold)

    def axes(self) -> Axes:
        units = tuple(UNITS[unit] for unit in dict.fromkeys(self.units.split("+")))
        lasso = Lasso(units=units, strength=self.strength, zero_below=self.threshold, removable=True)
        return Axes(penalty=lasso, span=(0.0, 0.7), targeted=False)
