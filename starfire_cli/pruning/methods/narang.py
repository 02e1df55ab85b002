"""Threshold pruning of Narang et al. (2017, arXiv 1704.05119), written for RNNs."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes, Rewire
from starfire_cli.pruning.layer_units import LayerUnits
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_every, check_fraction, check_positive
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.removal import Below
from starfire_cli.pruning.smallest import kth_smallest


@METHODS.register("narang", "network")
@dataclass(frozen=True, kw_only=True)
class Narang:
    """All weights under a threshold go; it rises with one slope, then with a steeper one, to q at the era's end.

    theta = 2 q / (2 (ramp - start) + 3 (end - ramp)) a step, then 1.5 theta, counted from `start` (the paper counts one
    evaluation more, and passes q by that). The sparsity is what comes out, and each layer keeps its strongest weight.
    By default the era is the first half of the training (the paper begins with its second epoch: `--era`).
    Published: 88 to 92 % in RNNs at no loss.

    Args:
        q: the threshold at the end; by default each layer's quantile of |w| at the first evaluation that the target
            names (the paper: the 90th percentile of an earlier dense run).
        ramp_at: the share of the era after which the slope is steeper.
        every: steps between evaluations; default 100, or a twentieth of the era where that is less.
    """

    q: float | None = None
    ramp_at: float = 0.5
    every: int | None = None

    def __post_init__(self) -> None:
        if self.q is not None:
            check_positive("q", self.q)
        check_fraction("ramp_at", self.ramp_at)
        check_every(self.every)

    def axes(self) -> Axes:
        below = Below(threshold=self.threshold)
        stages, aimed = (Rewire(removal=below),), self.q is None
        return Axes(stages=stages, every=self.every, span=(0.0, 0.5), targeted=False, aimed=aimed)

    def threshold(self, units: LayerUnits, moment: Moment) -> float:
        """The threshold of a layer after `moment.step` steps."""
        passed, ramp = moment.passed, self.ramp_at
        theta = 2 / (2 * ramp + 3 * (1 - ramp))
        return self._end(units, moment) * theta * (min(passed, ramp) + 1.5 * max(0.0, passed - ramp))

    def _end(self, units: LayerUnits, moment: Moment) -> float:
        if self.q is not None:
            return self.q
        name = f"q of {units.layer.key}"
        if name not in moment.memory:
            live = units.magnitudes()[units.alive_U].abs()
            count = max(1, min(len(live), round(moment.target * len(live))))
            moment.memory[name] = float(kth_smallest(live[None], count))
        return float(moment.memory[name])
