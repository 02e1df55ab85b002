"""Network slimming: channels by their BatchNorm's scale, all layers competing (Liu et al., 2017, arXiv 1708.06519)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from starfire_cli.pruning.axes import Axes
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.pruning.channels.selection.gammas import choose_gone
from starfire_cli.pruning.lasso import ScaleLasso
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_choice, check_not_negative

CONSTANTS = ("fold", "zero")


@METHODS.register("slimming", "network", "channels")
@dataclass(frozen=True, kw_only=True)
class NetworkSlimming:
    """`train` adds L1 on the scales of BatchNorm to the loss and prunes nothing; `prune-mask` then removes the channels
    with the smallest |gamma| of the network. Every layer keeps its strongest.

    Channels that are added up go together, and count by the largest |gamma| among them. The public code keeps what is
    larger than the value at index int(n t) of all n scales: where n t is whole, one channel more goes than here.

    Published: CIFAR-10, VGG-19 93.77 before, 93.78 at 0.7; ResNet-164 94.75, 95.05 at 0.4, 93.81 at 0.6.

    Args:
        strength: of `train`: what the sum of |gamma| is multiplied with; 1e-5 for ResNet-164 and DenseNet-40.
        constants: of `prune-mask`. "fold": a channel's scale becomes 0, and what its shift then gives at every pixel
            goes into the layers that read it; "zero": its shift becomes 0, too, as published.
    """

    of_training: ClassVar[tuple[str, ...]] = ("strength",)
    of_prune_mask: ClassVar[tuple[str, ...]] = ("constants",)

    strength: float = 1e-4
    constants: str = "fold"

    def __post_init__(self) -> None:
        check_not_negative("strength", self.strength)
        check_choice("constants", self.constants, CONSTANTS)

    def axes(self) -> Axes:
        return Axes(penalty=ScaleLasso(strength=self.strength), span=(0.0, 1.0), targeted=False)

    @property
    def takes_target(self) -> bool:
        return True

    @property
    def looks_at_images(self) -> bool:
        return False

    def prune(self, network: EditedNetwork, target: float) -> None:
        network.remove_numbers(choose_gone(network, target), fold=self.constants == "fold")
