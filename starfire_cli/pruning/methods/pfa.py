"""Principal Filter Analysis: as many channels as a layer's responses need (Suau et al., 2018, arXiv 1807.10585)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from starfire_cli.errors import BadOption, unknown
from starfire_cli.pruning.budget import pruned
from starfire_cli.pruning.channels.selection import pfa
from starfire_cli.pruning.channels.selection.consumer_samples import responses
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.pruning.methods import METHODS

RECIPES, POOLS = ("kl", "energy", "size"), ("max", "mean")


@METHODS.register("pfa", "channels")
@dataclass(frozen=True, kw_only=True)
class PFA:
    """Removes the channels that others repeat; the spectrum of a layer's responses says how many.

    Rules and constants are those of its public code, dnikit; of equals the lower index goes.

    Published: VGG-16 8, 3 and 1.4 times as small on CIFAR-10, CIFAR-100 and ImageNet, and no worse after training on.

    Args:
        recipe: "kl" (no parameter), "energy" (what is to be kept of the spectrum), "size" (one energy for all layers,
            such that --target is met).
        energy: for that recipe, above 0 and at most 1.
        pool: of a response over its map, "max" or "mean".
    """

    recipe: str = "kl"
    energy: float = 0.95
    pool: str = "max"

    def __post_init__(self) -> None:
        for what, given, known in (("recipe", self.recipe, RECIPES), ("pool", self.pool, POOLS)):
            if given not in known:
                raise unknown(what, given, known)
        if not 0 < self.energy <= 1:
            raise BadOption(f"energy={self.energy} is out of range; it is a share, above 0 and at most 1")
        if self.recipe != "energy" and self.energy != PFA.energy:
            raise BadOption(f"energy={self.energy} belongs to recipe=energy, and this is recipe={self.recipe}")

    @property
    def takes_target(self) -> bool:
        return self.recipe == "size"

    @property
    def looks_at_images(self) -> bool:
        return True

    def prune(self, network: EditedNetwork, target: float) -> None:
        images, sites = sum(map(len, network.batches)), network.open_sites()
        widest = max(sites, key=lambda site: len(site.numbers))
        if images < len(widest.numbers):
            raise BadOption(
                f"--calibrate {images} is too few for {widest.layer} and its {len(widest.numbers)} channels: pfa needs "
                f"as many images as a layer has channels, at least --calibrate {len(widest.numbers)}"
            )
        covariances = [pfa.covariance(seen) for seen in responses(network, sites, self.pool)]
        for site, cov_CC, keep in zip(sites, covariances, self._counts(covariances, target), strict=True):
            order, channels = pfa.removal_order(cov_CC), len(cov_CC)
            inactive = 0 if self.recipe == "size" else len(pfa.inactive_channels(cov_CC))
            gone = min(channels - 1, max(channels - keep, inactive))
            network.remove(site, sorted(order[gone:]))

    def _counts(self, covariances: Sequence[Tensor], target: float) -> list[int]:
        spectra = [pfa.spectrum(cov_CC) for cov_CC in covariances]
        if self.recipe == "kl":
            return [pfa.count_by_kl(spectrum_C) for spectrum_C in spectra]
        if self.recipe == "energy":
            return [pfa.count_by_energy(spectrum_C, self.energy) for spectrum_C in spectra]
        total = sum(map(len, spectra))
        keep = total - pruned(total, target)
        if keep < len(spectra):
            works = int((total - len(spectra)) / total * 1000) / 1000
            raise BadOption(
                f"--target {target:g} leaves {keep} channels for {len(spectra)} layers; at most --target {works:g} "
                "leaves one everywhere"
            )
        return pfa.counts_by_size(spectra, keep)
