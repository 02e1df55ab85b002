"""Structured RigL: constant fan-in with the ablation of neurons (Lasby et al., 2024, arXiv 2305.02299)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from starfire_cli.pruning.axes import Axes, Change, SparseStart
from starfire_cli.pruning.layer_units import LayerUnits, by_layer
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import SHAPED, check_choice, check_every, check_fraction
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.removal import swapped
from starfire_cli.pruning.selection import count_flags, count_of_rows, largest, smallest_of_rows


@dataclass(frozen=True, kw_only=True)
class ConstantFanIn:
    """Swaps weights so that every live neuron of a layer has the same number of them, or one more or less.

    Args:
        fraction: of the live weights that are swapped at first; it falls to 0 along a cosine.
        salient: a neuron with fewer salient weights than this share of its fan-in is ablated.

    The last layer's neurons all stay. The number of live weights of a layer stays what it was.
    """

    fraction: float
    salient: float
    monotone: bool = field(default=False, init=False)
    reads: frozenset[str] = field(default=frozenset({"gradient"}), init=False)

    def apply(self, layers: Mapping[str, LayerUnits], moment: Moment) -> dict[str, Change]:
        last = list(layers)[-1]
        fraction = moment.cosine(self.fraction)
        return by_layer(layers, lambda key, units: self._of(units, fraction, ablate=key != last))

    def _of(self, units: LayerUnits, fraction: float, *, ablate: bool) -> Change:
        assert units.gradient is not None
        neurons = len(units.weight)
        weight_N, gradient_N = units.magnitudes(), units.scores(units.gradient)
        alive_KN = units.alive_U.reshape(neurons, -1)
        drop = swapped(units.live, fraction)
        keep = units.live - drop
        strong_N = units.alive_U & ~units.smallest(weight_N, units.alive_U, drop)
        salient_N = strong_N | units.largest(gradient_N, torch.ones_like(strong_N), drop)
        salient_K = count_of_rows(salient_N.reshape(neurons, -1))
        neuron_K = self._neurons(units, salient_K) if ablate else torch.ones_like(salient_K, dtype=torch.bool)
        staying_N = (alive_KN & neuron_K[:, None]).reshape(-1)
        kept_N = staying_N & ~units.smallest(weight_N, staying_N, count_flags(staying_N) - keep)
        fan_in_K = _fan_in(units.live, neuron_K, kept_N.numel() // neurons)
        kept_KN, weight_KN, gradient_KN = (x.reshape(neurons, -1) for x in (kept_N, weight_N, gradient_N))
        over_K = count_of_rows(kept_KN) - fan_in_K
        filled_KN = kept_KN & ~smallest_of_rows(weight_KN, kept_KN, over_K, order=units.order)
        filled_KN |= smallest_of_rows(gradient_KN, ~kept_KN, -over_K, sign=-1, order=units.order)
        return Change(alive_U=filled_KN.reshape(-1))

    def _neurons(self, units: LayerUnits, salient_K: Tensor) -> Tensor:
        """The neurons that live on: those with enough salient weights, and as many as the live weights need."""
        neurons = len(salient_K)
        dense = units.count // neurons
        living_K = count_of_rows(units.alive_U.reshape(neurons, -1)) > 0
        fan_in = round(units.live / max(1, int(living_K.sum())))
        enough_K = salient_K >= max(1.0, self.salient * fan_in)
        least = max(1, -(-units.live // dense))
        if int(enough_K.sum()) >= least:
            return enough_K
        return largest(salient_K.double(), torch.ones_like(enough_K), least)


def _fan_in(live: int, neuron_K: Tensor, dense: int) -> Tensor:
    """The live weights of each neuron, (K,): all alike, but that the first ones take what does not divide."""
    count = int(neuron_K.sum())
    each, more = divmod(live, count)
    place_K = neuron_K.cumsum(0)
    fan_in_K = each + (place_K <= more).long()
    return torch.where(neuron_K, fan_in_K.clamp_max(dense), 0)


@METHODS.register("srigl", "network")
@dataclass(frozen=True, kw_only=True)
class StructuredRigL:
    """As RigL, but every live neuron or filter of a layer has the same fan-in, and neurons of little use are ablated.

    With n weights to be swapped, a live weight is salient if it is not among the n of the smallest |w| of its layer,
    and any weight if it is among the n of the largest |dL/dw|. In the neurons that stay the smallest |w| go as in RigL;
    then those with too many lose their smallest |w| (the authors' code cuts arbitrarily), and each is filled up by
    |dL/dw|. Published: linear layers at 90 % run 3.4 times as fast as dense ones on a CPU.

    Args:
        fraction: of the live weights that are swapped at first; it falls to 0 along a cosine.
        salient: neurons with fewer salient weights than this share of the fan-in are ablated (gamma; 0.95 for ViT).
        allocation: "erk", "er" or "uniform" (which leaves the first convolution dense).
        every: steps between evaluations; default 100, or a twentieth of the era where that is less,
            but at least 10.
    """

    fraction: float = 0.3
    salient: float = 0.3
    allocation: str = "erk"
    every: int | None = None

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_fraction("salient", self.salient)
        check_choice("allocation", self.allocation, SHAPED)
        check_every(self.every)

    def axes(self) -> Axes:
        return Axes(
            start=SparseStart(allocation=self.allocation, fan_in=True),
            stages=(ConstantFanIn(fraction=self.fraction, salient=self.salient),),
            every=self.every,
            replaces_step=True,
            span=(0.0, 0.75),
            dense_first=self.allocation == "uniform",
        )
