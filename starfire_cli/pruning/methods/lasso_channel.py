"""Channel pruning by LASSO, with the next layer's weights fitted anew (He et al., 2017, arXiv 1707.06168)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starfire_cli.errors import BadOption
from starfire_cli.pruning.channels.selection.consumer_samples import ConsumerSamples, check_samples, sample_consumers
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.pruning.channels.selection.lasso import choose_kept, moments
from starfire_cli.pruning.channels.selection.least_squares import fit
from starfire_cli.pruning.channels.selection.sampling import generator
from starfire_cli.pruning.channels.selection.sites import kept_counts
from starfire_cli.pruning.methods import METHODS

_LARGEST = 1 << 23  # numbers of Z at a time


@METHODS.register("lasso-channel", "channels")
@dataclass(frozen=True, kw_only=True)
class LassoChannel:
    """Removes the channels that a LASSO over their contributions leaves out; least squares mends the layers behind.

    Layers in order: the outputs wanted are the original network's, the inputs those of the network as pruned so far,
    and the last layer of a residual branch makes up for what its shortcut lost. The public code's LASSO ends with up to
    a tenth more channels than wanted, here with as many; its sampler in front of a block is left out. Where the network
    is pruned already, least squares is among the live weights of each output.

    Published: ImageNet with 5,000 images, VGG-16 at 5x 67.8/88.1; ResNet-50 at 2x 72.3/90.8.

    Args:
        places: how many random outputs of each image are looked at.
    """

    places: int = 10

    def __post_init__(self) -> None:
        if self.places < 1:
            raise BadOption(f"places={self.places} is out of range; 1 or more outputs of each image are looked at")

    @property
    def takes_target(self) -> bool:
        return True

    @property
    def looks_at_images(self) -> bool:
        return True

    def prune(self, network: EditedNetwork, target: float) -> None:
        counts = kept_counts(network.open_sites(), target)
        plan = [(s, k) for s, k in zip(network.sites, counts, strict=True) if k < len(s.numbers)]
        for site, keep in plan:
            for consumer in site.consumers:
                taps = consumer.inputs_CP.shape[1] * network.weight(consumer.name)[0, 0].numel()
                check_samples(network, site, consumer, places=self.places, needed=keep * taps + 1)
        for site, keep in plan:
            samples = sample_consumers(network, site, places=self.places, wanted=True)
            kept, _ = choose_kept(*moments(part for sample in samples for part in _rows(sample, network.seed)), keep)
            network.remove(site, kept)
            for sample in samples:
                _refit(network, sample, kept)


def _rows(sample: ConsumerSamples, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Z and y of a random sample of places, in parts: a twentieth of them, at most 400."""
    x_MCT, weight_KCT, wanted_MK = sample.x_MCT, sample.weight_KCT, sample.wanted_MK
    assert wanted_MK is not None
    chosen = torch.randperm(len(x_MCT), generator=generator(seed, sample.consumer.name, "rows"))
    chosen = chosen[: max(1, min(400, len(x_MCT) // 20))]
    each = max(1, _LARGEST // (weight_KCT.shape[0] * weight_KCT.shape[1]))
    for start in range(0, len(chosen), each):
        rows = chosen[start : start + each]
        z_MKC = torch.einsum("mct,kct->mkc", x_MCT[rows], weight_KCT)
        yield z_MKC.flatten(0, 1), wanted_MK[rows].flatten()


def _refit(network: EditedNetwork, sample: ConsumerSamples, kept: Sequence[int]) -> None:
    assert sample.wanted_MK is not None
    node = sample.consumer.node
    constant = network.takes_constants(node)
    alive_KU = network.alive(sample.consumer, kept)
    x_MU = sample.x_MCT[:, list(kept)].flatten(1)
    weights_UK, constant_K = fit(x_MU, sample.wanted_MK, constant=constant, alive_KU=alive_KU)
    network.set_weight(sample.consumer, kept, weights_UK.T)
    if constant:
        network.add_constant(sample.consumer.name, node, constant_K)
