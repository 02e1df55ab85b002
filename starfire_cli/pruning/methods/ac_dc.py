"""AC/DC, alternating compressed and decompressed training (Peste et al., 2021, arXiv 2106.12379)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from starfire_cli.errors import BadOption
from starfire_cli.pruning.axes import Axes, Change, Rewire
from starfire_cli.pruning.layer_units import LayerUnits
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_choice
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.removal import Rise


@dataclass(frozen=True, kw_only=True)
class _Phases:
    """Alternates: at odd boundaries down to the target, at even ones all weights live again, from zero."""

    removal: Rise
    phases: int
    monotone: bool = field(default=False, init=False)
    reads: frozenset[str] = field(default=frozenset(), init=False)

    def apply(self, layers: Mapping[str, LayerUnits], moment: Moment) -> dict[str, Change]:
        number = _number(moment, self.phases)
        if number == moment.memory.get("phase", 0):
            return {}
        moment.memory["phase"] = number
        if number % 2:
            return Rewire(removal=self.removal).apply(layers, moment)
        return {key: Change(alive_U=torch.ones_like(units.alive_U)) for key, units in layers.items()}


def _number(moment: Moment, phases: int) -> int:
    """The number of the phase: 0 is dense, odd ones are sparse, and the last one begins at the era's end."""
    return min(phases, int(moment.passed * phases + 1e-9))


@METHODS.register("ac-dc", "network")
@dataclass(frozen=True, kw_only=True)
class AlternatingCompressedDecompressed:
    """Dense and sparse phases of equal length take turns in the era, which begins dense and ends with the target.

    At the beginning of a sparse phase the smallest |w| go; at the beginning of a dense one all weights train again,
    those that were dead from 0 and without momentum. Published: ResNet50 on ImageNet at 80/90 %: 76.3/75.0.

    Args:
        pool: "global", as in the paper: weights compete in the network; "layer": in their layer.
        phases: dense and sparse ones in the era, together; odd, so that the era ends at a dense phase's end.
    """

    pool: str = "global"
    phases: int = 7

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, ("global", "layer"))
        if self.phases < 1 or self.phases % 2 == 0:
            raise BadOption(f"phases={self.phases} is out of range; an odd number, so that the era ends sparse")

    def axes(self) -> Axes:
        rise = Rise(allocation="global" if self.pool == "global" else "uniform", reach=self._reach)
        return Axes(stages=(_Phases(removal=rise, phases=self.phases),), every=1, span=(0.1, 0.85), periods=self.phases)

    def _reach(self, moment: Moment) -> float:
        return float(_number(moment, self.phases) % 2)
