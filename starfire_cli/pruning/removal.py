"""Rules for which live units go at an evaluation: a count that rises, a share that is swapped, a threshold.

Each is told every layer's units and gives the units that go, (U,) bool, by layer; it never takes the last of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from starfire_cli.pruning.allocation import erdos_renyi, globally, globally_by_weight, uniform
from starfire_cli.pruning.budget import pruned
from starfire_cli.pruning.layer_units import LayerUnits, by_layer
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.scores import READS, score
from starfire_cli.pruning.selection import below, count_flags

Units = Mapping[str, LayerUnits]


class Removal(Protocol):
    """Chooses the units that go.

    Attributes:
        reads: what is read beside weights and masks (see `Stage`).
    """

    @property
    def reads(self) -> frozenset[str]: ...

    def choose(self, layers: Units, moment: Moment) -> dict[str, Tensor]:
        """By layer the units that go, bool, (U,); a layer may be missing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rise:
    """The sparsity rises to the target, and the units of the lowest score go.

    Args:
        allocation: "uniform", "erk", "er" or "global".
        score: see `scores.py`.
        initial: the sparsity that the rise begins at.
        reach: the part of the target that is due at a moment; by default the era's.
        pauses: whether nothing goes at a moment, whatever is due.
    """

    allocation: str = "uniform"
    score: str = "magnitude"
    initial: float = 0.0
    reach: Callable[[Moment], float] = lambda moment: moment.progress
    pauses: Callable[[Moment], bool] = lambda moment: False

    @property
    def reads(self) -> frozenset[str]:
        """The inputs read beside weights and masks: see `Stage`."""
        return READS.get(self.score, frozenset())

    def choose(self, layers: Units, moment: Moment) -> dict[str, Tensor]:
        if self.pauses(moment):
            return {}
        return weakest(self.allocation, self.score, layers, self.sparsity(moment), final=moment.target)

    def sparsity(self, moment: Moment) -> float:
        """The sparsity that is due."""
        return self.initial + (moment.target - self.initial) * self.reach(moment)


def weakest(allocation: str, by: str, layers: Units, sparsity: float, *, final: float) -> dict[str, Tensor]:
    """The live units of the lowest scores that go so that layers, or the network, reach a sparsity.

    `final` is where it rises to.
    """
    if allocation == "global":
        scores = by_layer(layers, lambda key, units: score(by, units))
        # Units of one size are counted themselves, which rounds once; of several sizes, their weights.
        alike = len({units.size for units in layers.values()}) <= 1
        size = {key: 1 if alike else units.size for key, units in layers.items()}
        total = sum(units.count * size[key] for key, units in layers.items())
        due = pruned(total, sparsity) - (total - sum(units.live * size[key] for key, units in layers.items()))
        counts = (globally if alike else globally_by_weight)(layers, scores, due)
        due_layers = {key: layers[key] for key, n in counts.items() if n}
        return by_layer(due_layers, lambda key, units: units.smallest(scores[key], units.alive_U, counts[key]))
    dead = share_out(allocation, layers, sparsity, final=final)
    most = {key: min(dead[key] - (units.count - units.live), units.live - 1) for key, units in layers.items()}
    due_layers = {key: units for key, units in layers.items() if most[key] > 0}
    return by_layer(due_layers, lambda key, units: units.smallest(score(by, units), units.alive_U, most[key]))


def share_out(allocation: str, layers: Units, sparsity: float, *, final: float) -> dict[str, int]:
    """Dead units by layer under an allocation that looks at shapes alone.

    On the way to the `final` sparsity no layer gets more than it has there, so that it ends as if it had come at once.
    """
    counts = {key: units.count for key, units in layers.items()}
    if allocation == "uniform":
        return uniform(counts, sparsity)
    shapes = [units.layer for units in layers.values()]
    share = partial(erdos_renyi, shapes, counts, kernel=allocation == "erk", dead=dead_units(layers))
    return share(sparsity, most=share(final))


def dead_units(layers: Units) -> dict[str, int]:
    """The number of dead units of each layer."""
    return {key: units.count - units.live for key, units in layers.items()}


@dataclass(frozen=True, kw_only=True)
class Swap:
    """A fraction of each layer's live units goes, to be regrown elsewhere: those of the lowest score.

    Args:
        fraction: of the live units, at the era's beginning.
        anneal: "cosine" (to `end` at the era's end) or "constant".
        end: what a cosine ends at.
        by_sign: the fraction is taken of the positive weights nearest zero and of the negative ones, each by itself; a
            weight that is 0 counts among the negative.
        score: see `scores.py`.
    """

    fraction: float = 0.3
    anneal: str = "cosine"
    end: float = 0.0
    by_sign: bool = False
    score: str = "magnitude"

    @property
    def reads(self) -> frozenset[str]:
        """The inputs read beside weights and masks: see `Stage`."""
        return READS.get(self.score, frozenset())

    def choose(self, layers: Units, moment: Moment) -> dict[str, Tensor]:
        fraction = moment.cosine(self.fraction, self.end) if self.anneal == "cosine" else self.fraction
        return by_layer(layers, lambda key, units: self._of(units, fraction))

    def _of(self, units: LayerUnits, fraction: float) -> Tensor:
        ranks_U = score(self.score, units)
        if not self.by_sign:
            return units.smallest(ranks_U, units.alive_U, swapped(units.live, fraction))
        return units.smallest_by_sign(ranks_U, units.alive_U, partial(swapped, fraction=fraction))


def swapped(live: int, fraction: float) -> int:
    """The number of live units in a fraction of them: rounded down, and never all."""
    return max(0, min(int(live * fraction + 1e-9), live - 1))


@dataclass(frozen=True, kw_only=True)
class Below:
    """All live units whose score lies under a threshold go, but for the strongest of each layer.

    Args:
        threshold: of a layer at a moment.
        score: see `scores.py`.
    """

    threshold: Callable[[LayerUnits, Moment], float]
    score: str = "magnitude"

    @property
    def reads(self) -> frozenset[str]:
        """The inputs read beside weights and masks: see `Stage`."""
        return READS.get(self.score, frozenset())

    def choose(self, layers: Units, moment: Moment) -> dict[str, Tensor]:
        limits = {key: self.threshold(units, moment) for key, units in layers.items()}
        return by_layer(layers, lambda key, units: self._of(units, limits[key]))

    def _of(self, units: LayerUnits, limit: float) -> Tensor:
        ranks_U = score(self.score, units)
        return _not_all(units, ranks_U, below(ranks_U, units.alive_U, limit))


def _not_all(units: LayerUnits, ranks_U: Tensor, goes_U: Tensor) -> Tensor:
    all_go = units.live and count_flags(goes_U) == units.live
    return units.smallest(ranks_U, units.alive_U, units.live - 1) if all_go else goes_U


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """One threshold for all layers, halved or doubled so that about as many units go each time as wanted.

    Dynamic sparse reparameterization (Mostafa and Wang, 2019, arXiv 1902.05967). The threshold is remembered as
    "threshold".

    Args:
        wanted: units that should go at each evaluation, in all layers together; a share of the live ones if below 1.
        initial: the first threshold.
        tolerance: how far off the number may be, as a share of it, without the threshold's changing.
    """

    wanted: float
    initial: float = 1e-3
    tolerance: float = 0.1

    @property
    def reads(self) -> frozenset[str]:
        """Nothing beside weights and masks."""
        return frozenset()

    def choose(self, layers: Units, moment: Moment) -> dict[str, Tensor]:
        limit = float(moment.memory.get("threshold", self.initial))
        goes = Below(threshold=lambda units, at: limit).choose(layers, moment)
        gone = sum(map(count_flags, goes.values()))
        live = sum(units.live for units in layers.values())
        wanted = self.wanted if self.wanted >= 1 else self.wanted * live
        if gone > (1 + self.tolerance) * wanted:
            limit /= 2
        elif gone < (1 - self.tolerance) * wanted:
            limit *= 2
        moment.memory["threshold"] = limit
        return goes
