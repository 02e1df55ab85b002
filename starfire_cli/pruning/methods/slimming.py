"""Network slimming (Liu et al., 2017, arXiv 1708.06519)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes
from starfire_cli.pruning.lasso import ScaleLasso
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_not_negative


@METHODS.register("slimming", "network")
@dataclass(frozen=True, kw_only=True)
class NetworkSlimming:
    """L1 on the scales of BatchNorm while the network trains; channels of small scales are cut afterwards.

    Nothing is pruned here: `prune-mask --method slimming` does that, and fine-tuning is `train --init`. Published:
    VGG19 on CIFAR-10 93.77 to 93.78 % without 70 % of its channels; ResNet-164 94.75 to 95.05 % without 40 %.

    Args:
        strength: what the sum of |gamma| is multiplied with: 1e-4 for VGG, 1e-5 for ResNet-164 and DenseNet-40.
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        check_not_negative("strength", self.strength)

    def axes(self) -> Axes:
        return Axes(penalty=ScaleLasso(strength=self.strength), span=(0.0, 1.0), targeted=False)
