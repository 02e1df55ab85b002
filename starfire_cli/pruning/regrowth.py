"""Rules for which dead units come back: at random or by their gradient, in the layer that lost them or elsewhere."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from starfire_cli.pruning.layer_units import LayerUnits, by_layer
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.scores import READS, score
from starfire_cli.pruning.selection import count_flags, places_of

SHARINGS = ("layer", "live", "momentum")


class Regrowth(Protocol):
    """Chooses the units that come back.

    Attributes:
        keeps_value: whether a unit that goes and comes back in one evaluation keeps its weights; else it starts at 0.
        reads: what is read beside weights and masks (see `Stage`).
    """

    @property
    def keeps_value(self) -> bool: ...

    @property
    def reads(self) -> frozenset[str]: ...

    def choose(self, layers: Mapping[str, LayerUnits], gone: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """By layer the units that come back, bool, (U,), of those that are dead once `gone` went."""
        ...


@dataclass(frozen=True, kw_only=True)
class Grow:
    """As many units come back as went, so that the number of live ones stays what it was.

    Args:
        by: "random", or a score of `scores.py`: the highest come back, of equals those of the lower index.
        shared: "layer": each layer regrows its own. Else all together: "live": each layer its share of the live units
            (Mostafa and Wang, 2019); "momentum": in proportion to the mean |momentum| of its live weights (Dettmers and
            Zettlemoyer, 2019). What finds no place in a layer goes to others. Units of another size are shared out by
            themselves, so that the number of live weights stays what it was as well.
        again: whether what has just gone may come back; without it, only where there are too few other places.
        keeps_value: whether it then keeps its weights and optimizer state.
    """

    by: str = "random"
    shared: str = "layer"
    again: bool = True
    keeps_value: bool = False

    @property
    def reads(self) -> frozenset[str]:
        """The inputs read beside weights and masks: see `Stage`."""
        return READS.get(self.by, frozenset()) | (frozenset({"momentum"}) if self.shared == "momentum" else frozenset())

    def choose(self, layers: Mapping[str, LayerUnits], gone: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        lost = dict.fromkeys(layers, 0) | by_layer(
            {key: layers[key] for key in gone}, lambda key, units: count_flags(gone[key])
        )
        weights = None if self.shared == "layer" else self._weights(layers, lost)
        counts: dict[str, int] = {}
        again: set[str] = set()
        for group in _together(layers, alone=self.shared == "layer"):
            total = sum(lost[key] for key in group)
            places = {key: layers[key].count - layers[key].live for key in group}
            if self.again or sum(places.values()) < total:
                places = {key: n + lost[key] for key, n in places.items()}
                again.update(group)
            if weights is None:
                counts |= {key: lost[key] for key in group}
            else:
                counts |= share_out_growth({key: weights[key] for key in group}, places, total, moment)
        due = {key: layers[key] for key, n in counts.items() if n}

        def grown(key: str, units: LayerUnits) -> Tensor:
            # What goes has lived: of the four combinations only "alive and not gone" is no place to grow at.
            open_U = ~(units.alive_U ^ gone[key] if key in again and key in gone else units.alive_U)
            return self._of(units, key, open_U, counts[key], moment)

        return by_layer(due, grown)

    def _weights(self, layers: Mapping[str, LayerUnits], lost: Mapping[str, int]) -> dict[str, float]:
        """The relative share of each layer in the units that come back."""
        if self.shared == "live":
            return {key: float(units.live - lost[key]) for key, units in layers.items()}
        return by_layer(layers, lambda key, units: _mean_momentum(units))

    def _of(self, units: LayerUnits, key: str, open_U: Tensor, count: int, moment: Moment) -> Tensor:
        if self.by == "random":
            return moment.choose(key, open_U, count, "grow", order=units.order)
        return units.largest(score(self.by, units), open_U, count)


def _mean_momentum(units: LayerUnits) -> float:
    """The mean |momentum| of the live weights."""
    assert units.momentum is not None
    places = places_of(units.flat(units.alive))
    return float(units.flat(units.momentum)[places].abs().double().mean()) if units.live else 0.0


def _together(layers: Mapping[str, LayerUnits], *, alone: bool) -> list[list[str]]:
    """The keys of the layers that regrow together: each for itself, or those whose units are of one size."""
    groups: dict[Hashable, list[str]] = {}
    for key, units in layers.items():
        groups.setdefault(key if alone else units.size, []).append(key)
    return list(groups.values())


def share_out_growth(
    weights: Mapping[str, float], places: Mapping[str, int], total: int, moment: Moment
) -> dict[str, int]:
    """`total` units shared out among layers in proportion to `weights`, as far as there are places.

    Each layer is due its rounded share. What the rounding is off by, a random layer gets more or less. What finds no
    place in its layer is shared out again, among those that have some (the authors' code of arXiv 1902.05967).
    """
    counts = dict.fromkeys(weights, 0)
    left = min(total, sum(places.values()))
    draws = moment.generator("", "shares")
    while left > 0:
        able = [key for key in weights if counts[key] < places[key]]
        whole = sum(weights[key] for key in able)
        shares = {key: round(left * weights[key] / whole) if whole else 0 for key in able}
        if off := left - sum(shares.values()):
            key = able[int(draws.integers(len(able)))]
            shares[key] = max(0, shares[key] + off)
        for key, share in shares.items():
            more = min(share, places[key] - counts[key], left)
            counts[key] += more
            left -= more
    return counts
