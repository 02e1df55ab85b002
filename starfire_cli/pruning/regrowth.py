"""Rules for which dead units come back: at random or by their gradient, in the layer that lost them or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from starfire_cli.pruning.layer_units import LayerUnits, by_layer, largest
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.scores import READS, score

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
            Zettlemoyer, 2019). What finds no place in a layer goes to others.
        again: whether what has just gone may come back.
        keeps_value: whether it then keeps its weights and optimizer state.
    """

    by: str = "random"
    shared: str = "layer"
    again: bool = True
    keeps_value: bool = False

    @property
    def reads(self) -> frozenset[str]:
        """What is read beside weights and masks."""
        return READS.get(self.by, frozenset()) | (frozenset({"momentum"}) if self.shared == "momentum" else frozenset())

    def choose(self, layers: Mapping[str, LayerUnits], gone: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        none = {key: torch.zeros_like(units.alive_U) for key, units in layers.items()}
        gone = none | dict(gone)
        open_ = {key: ~units.alive_U if not self.again else ~units.alive_U | gone[key] for key, units in layers.items()}
        lost = {key: int(torch.count_nonzero(chosen)) for key, chosen in gone.items()}
        counts = lost
        if self.shared != "layer":
            places = {key: int(torch.count_nonzero(x)) for key, x in open_.items()}
            weights = self._weights(layers, lost)
            for size in {
                units.size for units in layers.values()
            }:  # so that the live weights stay as many, not only units
                group = [key for key, units in layers.items() if units.size == size]
                total = sum(lost[key] for key in group)
                counts |= share_out_growth({k: weights[k] for k in group}, {k: places[k] for k in group}, total, moment)
        due = {key: layers[key] for key, n in counts.items() if n}
        return by_layer(due, lambda key, units: self._of(units, key, open_[key], counts[key], moment))

    def _weights(self, layers: Mapping[str, LayerUnits], lost: Mapping[str, int]) -> dict[str, float]:
        """How much of what comes back each layer is due."""
        if self.shared == "live":
            return {key: float(units.live - lost[key]) for key, units in layers.items()}
        found = {}
        for key, units in layers.items():
            assert units.momentum is not None
            found[key] = float(units.momentum.abs()[units.alive].double().mean())
        return found

    def _of(self, units: LayerUnits, key: str, open_U: Tensor, count: int, moment: Moment) -> Tensor:
        if self.by == "random":
            return moment.choose(key, open_U, count, "grow")
        return largest(score(self.by, units), open_U, count)


def share_out_growth(
    weights: Mapping[str, float], places: Mapping[str, int], total: int, moment: Moment
) -> dict[str, int]:
    """`total` units shared out among layers in proportion to `weights`, as far as there are places.

    Each layer is due its rounded share. What rounding leaves over goes to a random layer, what finds no place to the
    others, by the same shares (Mostafa and Wang, 2019, Algorithm 1).
    """
    counts = dict.fromkeys(weights, 0)
    left = min(total, sum(places.values()))
    draws = moment.generator("", "shares")
    while left > 0:
        able = [key for key in weights if counts[key] < places[key]]
        whole, before = sum(weights[key] for key in able), left
        for key in able if whole else ():
            more = min(round(before * weights[key] / whole), places[key] - counts[key], left)
            counts[key] += more
            left -= more
        able = [key for key in able if counts[key] < places[key]]
        if left and able and (left == before or left <= len(able)):
            key = able[int(draws.integers(len(able)))]
            more = min(left, places[key] - counts[key])
            counts[key] += more
            left -= more
    return counts
