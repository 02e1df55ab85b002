"""Network slimming: channels with the smallest scale of BatchNorm go, all layers competing (Liu et al., 2017).

arXiv 1708.06519. The network was trained with a penalty on the scales (1e-4 |gamma| for VGG, 1e-5 for ResNet-164).
CIFAR-10 of the public code: VGG-19 93.77 % before, 93.78 after at 0.7; ResNet-164 94.75, 95.05 at 0.4, 93.81 at 0.6.
The code keeps what is larger than the value at index int(n t) of all n scales, which is one channel more gone than
here where n t is whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.errors import unknown
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.pruning.channels.selection.gammas import choose_gone
from starfire_cli.pruning.methods import METHODS

CONSTANTS = ("fold", "zero")


@METHODS.register("slimming", "channels")
@dataclass(frozen=True, kw_only=True)
class Slimming:
    """Removes the channels with the smallest |gamma| of the network; every layer keeps its strongest.

    Channels that are added up go together, and count by the largest |gamma| among them.

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
