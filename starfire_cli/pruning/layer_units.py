"""The units of a layer at an evaluation: their scores, the live ones, and the smallest and largest of some."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.smallest import kth_smallest
from starfire_cli.pruning.units import Cut, rank_units, spread_units

Reduce = Literal["max", "sum", "mean", "norm"]
REDUCTIONS: dict[str, Reduce] = {"max": "max", "sum": "sum", "mean": "mean", "norm": "norm"}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What lives and dies as one.

    Args:
        axes: that it spans (see `Cut`): "" a weight, "RS" a kernel, "CRS" a filter, "S" a row, "K" an im2col column.
        reduce: its score from those of its weights.
    """

    axes: str = ""
    reduce: Reduce = "mean"


class LayerUnits:
    """The units of one layer, numbered in the order of the weight's axes.

    Args:
        layer: its kind, shape and groups count.
        unit: what they are.
        weight: of the layer's shape.
        alive: bool, likewise; a unit lives if any of its weights does.
        gradient: of the loss by each weight, also by dead ones; None where nobody asked for it.
        momentum: its running average, also of dead weights.
        signs: of each weight as it was before the optimizer's step: 1, 0 or -1.
    """

    def __init__(
        self,
        layer: Layer,
        unit: Unit,
        weight: Tensor,
        alive: Tensor,
        *,
        gradient: Tensor | None = None,
        momentum: Tensor | None = None,
        signs: Tensor | None = None,
    ) -> None:
        self.layer, self.unit = layer, unit
        self.weight, self.alive = weight, alive
        self.gradient, self.momentum, self.signs = gradient, momentum, signs
        self._cut = Cut(unit.axes, "", 0, reduce=unit.reduce)

    @cached_property
    def alive_U(self) -> Tensor:
        """The units that live: bool, (U,)."""
        if not self.unit.axes:
            return self.alive.reshape(-1)
        return rank_units(self.alive.float(), self.alive, self._cut, self.layer.groups)[1].reshape(-1)

    @property
    def count(self) -> int:
        """The number of units."""
        return self.alive_U.numel()

    @property
    def size(self) -> int:
        """Weights of a unit."""
        return self.layer.weights // self.count

    @cached_property
    def live(self) -> int:
        """The number of live units."""
        return int(torch.count_nonzero(self.alive_U))

    def scores(self, tensor: Tensor) -> Tensor:
        """The units' scores from |tensor|, (U,); of dead units as of live ones.

        Raises StarfireError where it holds NaN or inf.
        """
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            raise StarfireError(f"{self.layer.key} holds NaN or inf; its smallest weights cannot be told")
        if not self.unit.axes:
            flat = tensor.detach().abs().reshape(-1)
            return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
        every = torch.ones_like(tensor, dtype=torch.bool)
        return rank_units(tensor, every, self._cut, self.layer.groups)[0].reshape(-1)

    @property
    def deviation(self) -> float:
        """The standard deviation of the live weights."""
        return float(self.weight[self.alive].double().std(correction=0))

    def magnitudes(self) -> Tensor:
        """The units' scores from |w|, (U,)."""
        return self.scores(self.weight)

    def spread(self, units_U: Tensor) -> Tensor:
        """Units as weights: bool, of the weight's shape."""
        if not self.unit.axes:
            return units_U.reshape(self.alive.shape)
        return spread_units(units_U, self._cut, self.alive.shape, self.layer.groups)


def smallest(score_N: Tensor, among_N: Tensor, count: int) -> Tensor:
    """The `count` candidates of the lowest score, of equals those of the lower index: bool, (N,).

    Args:
        score_N: any floating scores without NaN.
        among_N: bool, the candidates.
        count: how many, at most as many as there are.
    """
    if count <= 0:
        return torch.zeros_like(among_N)
    values = score_N[among_N]
    if count >= len(values):
        return among_N.clone()
    cutoff = kth_smallest(values[None], count)[0]
    chosen = (score_N < cutoff) & among_N
    tied = (score_N == cutoff) & among_N
    room = count - int(torch.count_nonzero(chosen))
    if room < int(torch.count_nonzero(tied)):
        tied &= tied.cumsum(0) <= room
    return chosen | tied


def largest(score_N: Tensor, among_N: Tensor, count: int) -> Tensor:
    """The `count` candidates of the highest score, of equals those of the lower index: bool, (N,)."""
    return smallest(-score_N, among_N, count)
