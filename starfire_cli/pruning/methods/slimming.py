"""Network slimming: channels by their BatchNorm's scale, all layers competing (Liu et al., 2017, arXiv 1708.06519)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.errors import unknown
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.pruning.channels.selection.gammas import choose_gone
from starfire_cli.pruning.methods import METHODS

CONSTANTS = ("fold", "zero")


@METHODS.register("slimming", "channels")
@dataclass(frozen=True, kw_only=True)
class NetworkSlimming:
    """Removes the channels with the smallest |gamma| of the network; every layer keeps its strongest.

    Channels that are added up go together, and count by the largest |gamma| among them. The network should have been
    trained with a penalty on the scales. The public code keeps what is larger than the value at index int(n t) of all
    n scales: where n t is whole, one channel more goes than here.

    Published: CIFAR-10, VGG-19 93.77 before, 93.78 at 0.7; ResNet-164 94.75, 95.05 at 0.4, 93.81 at 0.6.

    Args:
        constants: "fold": a channel's scale becomes 0, and what its shift then gives at every pixel goes into the
            layers that read it; "zero": its shift becomes 0, too, as published.
    """

    constants: str = "fold"

    def __post_init__(self) -> None:
        if self.constants not in CONSTANTS:
            raise unknown("constants", self.constants, CONSTANTS)

    @property
    def takes_target(self) -> bool:
        return True

    @property
    def looks_at_images(self) -> bool:
        return False

    def prune(self, network: EditedNetwork, target: float) -> None:
        network.remove_numbers(choose_gone(network, target), fold=self.constants == "fold")
