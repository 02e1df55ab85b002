"""Filter pruning by the sum of |w|, where nothing is added to the outputs (Li et al., 2016, arXiv 1608.08710)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from starfire_cli.errors import BadOption, unknown
from starfire_cli.numbers import parse_number, parse_whole
from starfire_cli.pruning.budget import Goal, pruned
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.pruning.channels.selection.sites import Site, kept_counts
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.units import Budget, Cut

# Rates of the stages, and the convolutions (the first is 1) that stay whole.
PRESETS = {
    "resnet56-a": ("0.1/0.1/0.1", "16/20/38/54"),
    "resnet56-b": ("0.6/0.3/0.1", "16/18/20/34/38/54"),
    "resnet110-a": ("0.5/0/0", "36"),
    "resnet110-b": ("0.5/0.4/0.3", "36/38/74"),
    "vgg16": ("0.5/0/0/0.5", "2"),
}


@METHODS.register("l1-filter", "conv", "channels")
@dataclass(frozen=True, kw_only=True)
class L1Filter:
    """Prunes the filters with the smallest sum of |w|; K (1 - target) of each layer stay, rounded down.

    In a residual block of two convolutions that is the first, in a plain network every one. The presets are the layers
    and rates of the paper's networks, which then trained 20 epochs at a learning rate of 0.001.

    Published: CIFAR-10, ResNet-56 93.04 before, A 93.10, B 93.06; ResNet-110 93.53, A 93.55, B 93.30; VGG-16 93.25,
    93.40.

    Args:
        stages: in place of the target, a rate for each stage, that is for each number of filters: 0.6/0.3/0.1.
        skip: convolutions that stay whole, counted from 1 in the network's order: 16/20/38/54.
        preset: both of a network of the paper: resnet56-a, resnet56-b, resnet110-a, resnet110-b or vgg16.
    """

    free_outputs_only: ClassVar[bool] = True  # in training, too

    stages: str = ""
    skip: str = ""
    preset: str | None = None

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise unknown("preset", self.preset, PRESETS)
        if self.preset is not None and (self.stages or self.skip):
            raise BadOption(f"preset={self.preset} has stages and skipped layers of its own; leave stages and skip out")
        if not all(0 <= rate < 1 for rate in self._rates()):
            raise BadOption(f"stages={self.stages} is out of range; each is a share of the filters, 0 to below 1")
        self._skipped()

    @property
    def takes_target(self) -> bool:
        return not self._rates()

    @property
    def looks_at_images(self) -> bool:
        return False

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        if self._rates() or self._skipped():
            raise BadOption("l1-filter takes stages, skip and preset in prune-mask only")
        if layer.depthwise:
            return None
        return (Cut("CRS", "", pruned(layer.shape[0], goal.threshold), reduce="sum"),)

    def prune(self, network: EditedNetwork, target: float) -> None:
        for site, keep in self._plan(network, target):
            order = network.weight(site.layer).double().abs().flatten(1).sum(1).argsort(stable=True).tolist()
            network.remove(site, order[len(order) - keep :])

    def _plan(self, network: EditedNetwork, target: float) -> Iterator[tuple[Site, int]]:
        convs = [name for name, module in network.model.named_modules() if isinstance(module, nn.Conv2d)]
        sites = [site for site in network.open_sites() if convs.index(site.layer) + 1 not in self._skipped()]
        if beyond := [number for number in self._skipped() if not 1 <= number <= len(convs)]:
            where = f"skip={self.skip}" if self.preset is None else f"preset={self.preset}"
            raise BadOption(f"l1-filter:{where} skips convolution {beyond[0]}, and the network has {len(convs)}")
        if not self._rates():
            yield from zip(sites, kept_counts(sites, target), strict=True)
            return
        widths = sorted({len(site.numbers) for site in network.sites})
        if len(widths) != len(self._rates()):
            raise BadOption(
                f"l1-filter has rates for {len(self._rates())} stages, and the layers here have {len(widths)} widths: "
                f"{', '.join(map(str, widths))}"
            )
        for site in sites:
            rate = self._rates()[widths.index(len(site.numbers))]
            yield from zip([site], kept_counts([site], rate), strict=True)

    def _rates(self) -> list[float]:
        stages = self.stages if self.preset is None else PRESETS[self.preset][0]
        try:
            return [parse_number(text) for text in stages.split("/")] if stages else []
        except ValueError:
            raise BadOption(f"stages={stages} is not a list of rates such as 0.6/0.3/0.1") from None

    def _skipped(self) -> list[int]:
        skip = self.skip if self.preset is None else PRESETS[self.preset][1]
        try:
            return [parse_whole(text) for text in skip.split("/")] if skip else []
        except ValueError:
            raise BadOption(f"skip={skip} is not a list of layers such as 16/20/38/54") from None
