"""PruneTrain (Lym et al., 2019, arXiv 1901.09290)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes, Shrinking
from starfire_cli.pruning.lasso import CHANNEL, FILTER, Lasso
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_fraction, check_interval, check_not_negative

_EPS = 1e-8  # under the root, as in the authors' code


@METHODS.register("prunetrain", "network")
@dataclass(frozen=True, kw_only=True)
class PruneTrain:
    """Group lasso on filters and input channels together; what it brings to nearly zero is removed while training.

    There is no target: what is left is what the penalty leaves. Where the era ends before the training, the rest is
    fine-tuning without the penalty. Published (the authors' README): ResNet50 on ImageNet 74.4 % at 37/53 % fewer FLOPs
    in training/inference; CIFAR-10 ResNet32 91.8 % at 53/66 %, ResNet50 93.1 % at 50/70 %.

    Args:
        ratio: the penalty's share of loss and penalty together on the first batch, which sets its strength for good.
        strength: what the sum of norms is multiplied with, in place of that.
        threshold: a filter or input channel is dead if no |w| in it is larger.
        interval: epochs between removals; default 10 (the paper; 5 on ImageNet), or a fifth of the era where that is
            less.
        weighted: a group counts by the square root of its number of weights.
    """

    ratio: float = 0.2
    strength: float | None = None
    threshold: float = 1e-4
    interval: int | None = None
    weighted: bool = False

    def __post_init__(self) -> None:
        check_fraction("ratio", self.ratio)
        check_not_negative("threshold", self.threshold)
        check_interval(self.interval)
        if self.strength is not None:
            check_not_negative("strength", self.strength)

    def axes(self) -> Axes:
        units = (FILTER, CHANNEL)
        lasso = Lasso(
            units=units, strength=self.strength, ratio=self.ratio, eps=_EPS, weighted=self.weighted, removable=True
        )
        shrinking = Shrinking(threshold=self.threshold, interval=self.interval)
        return Axes(penalty=lasso, shrinking=shrinking, span=(0.0, 1.0), targeted=False)
