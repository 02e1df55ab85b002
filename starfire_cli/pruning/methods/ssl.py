"""Structured sparsity learning: groups of weights that training drives to zero (Wen et al., 2016, arXiv 1608.03665)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.pruning.axes import Axes
from starfire_cli.pruning.channels.selection.consumer_samples import find_junction
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.pruning.lasso import CHANNEL, COLUMN, FILTER, LAYER, Lasso
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_choice, check_not_negative

UNITS = {"filter": FILTER, "channel": CHANNEL, "shape": COLUMN, "depth": LAYER}
_AXES = {"filter": (2, 3, 4), "channel": (1, 3, 4), "shape": (1,)}  # of (G, K / G, C, R, S)


@METHODS.register("ssl", "network", "channels")
@dataclass(frozen=True, kw_only=True)
class StructuredSparsityLearning:
    """`train` adds group lasso on units to the loss, sets weights below a threshold to zero after every step, from
    where they may come back, and holds units of only zeros dead from the era's end on; the rest is fine-tuned without
    the penalty. `prune-mask` removes groups whose weights are all below the threshold from a network trained so.

    A dead filter or channel is cut out by --shrink where that is exact; what a dead filter still gives through its
    BatchNorm is kept. A layer goes whole ("depth") only where a shortcut leads past it. There is no target: what the
    penalty leaves says how much goes. The paper starts from a trained network, with a tenth of its learning rate
    (`--init`, `--lr`).

    Published: CIFAR-10, ResNet-20 91.25 before, 92.60 with two layers less; AlexNet's convolutions 5.1 times as fast.

    Args:
        units: "filter", "channel" (of the input), "shape" (one place of all windows), "depth" (a layer), or several
            as in filter+channel.
        strength: of `train`: what the sum of norms is multiplied with; the public example for CIFAR-10 has 0.003.
        threshold: below which |w| counts as zero.
    """

    of_training: ClassVar[tuple[str, ...]] = ("strength",)

    units: str = "filter+channel"
    strength: float = 0.003
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        for unit in self.units.split("+"):
            check_choice("unit", unit, UNITS)
        check_not_negative("strength", self.strength)
        if not self.threshold > 0:
            raise BadOption(f"threshold={self.threshold} is out of range; it is above 0, such as 0.0001")

    def axes(self) -> Axes:
        units = tuple(UNITS[unit] for unit in dict.fromkeys(self.units.split("+")))
        lasso = Lasso(units=units, strength=self.strength, zero_below=self.threshold, removable=True)
        return Axes(penalty=lasso, span=(0.0, 0.7), targeted=False)

    @property
    def takes_target(self) -> bool:
        return False

    @property
    def looks_at_images(self) -> bool:
        return False

    def prune(self, network: EditedNetwork, target: float) -> None:
        # A layer whose outputs are added to others may lose groups all the same.
        network.left = []
        nodes = {str(node.target): node for node in network.traced.root.graph.nodes if node.op == "call_module"}
        for name in network.layers:
            module = network.model.get_submodule(name)
            assert isinstance(module, nn.Conv2d)
            bypassed = name in nodes and find_junction(network.traced, nodes[name]) is not None
            dead = self._dead(network.weight(name), module.groups, whole=bypassed)
            if bool(dead.all()) and not bypassed:
                raise StarfireError(
                    f"all weights of {name} are below {self.threshold:g}, and no shortcut leads past it; "
                    f"a lower threshold leaves it, or --keep-dense {name}"
                )
            if bool(dead.any()):
                network.removed[name] = int(dead.flatten(1).all(1).sum())
                network.mask(name, dead)

    def _dead(self, weight_KCRS: Tensor, groups: int, *, whole: bool) -> Tensor:
        """The weights of groups that are zero, bool, of the weight's shape."""
        small = (weight_KCRS.abs() < self.threshold).reshape(groups, -1, *weight_KCRS.shape[1:])  # (G, K / G, C, R, S)
        dead = torch.zeros_like(small)
        for unit in self.units.split("+"):
            if unit != "depth":
                dead |= small.all(_AXES[unit], keepdim=True)
            elif whole:
                dead |= small.all()
        return dead.flatten(0, 1)
