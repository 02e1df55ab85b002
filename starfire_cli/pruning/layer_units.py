"""The units of a layer at an evaluation: their scores, the live ones, and the smallest and largest of some."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.pruning._threads import in_threads
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.smallest import kth_smallest
from starfire_cli.pruning.units import Cut, rank_units, spread_units

Reduce = Literal["max", "sum", "mean", "norm"]
T = TypeVar("T")
_MANY = 1 << 14  # units that are worth a sample
_SAMPLE = 1 << 12
REDUCTIONS: dict[str, Reduce] = {"max": "max", "sum": "sum", "mean": "mean", "norm": "norm"}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A group of weights that lives and dies as one.

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
        factor: gamma / sigma of the BatchNorm that follows, (K,); None where none does, or nobody asked for it.
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
        factor: Tensor | None = None,
    ) -> None:
        self.layer, self.unit = layer, unit
        self.weight, self.alive = weight, alive
        self.gradient, self.momentum, self.signs, self.factor = gradient, momentum, signs, factor
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
        """The units' scores from |tensor|, (U,); of dead units as of live ones."""
        if not self.unit.axes:
            flat = tensor.detach().abs().reshape(-1)
            return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
        every = torch.ones_like(tensor, dtype=torch.bool)
        return rank_units(tensor, every, self._cut, self.layer.groups)[0].reshape(-1)

    @property
    def deviation(self) -> float:
        """The standard deviation of the live weights; the dead ones are zero, and so add nothing to either sum."""
        live = max(1, int(torch.count_nonzero(self.alive)))
        mean = float(self.weight.sum(dtype=torch.float64)) / live
        square = float(torch.linalg.vector_norm(self.weight, dtype=torch.float64)) ** 2 / live
        return math.sqrt(max(0.0, square - mean * mean))

    def magnitudes(self) -> Tensor:
        """The units' scores from |w|, (U,). Raises StarfireError where a weight is NaN or inf."""
        weight = self.weight
        if not bool(weight.sum().isfinite()) and not bool(weight.isfinite().all()):
            raise StarfireError(f"{self.layer.key} holds NaN or inf; its smallest weights cannot be told")
        return self.scores(self.weight)

    def spread(self, units_U: Tensor) -> Tensor:
        """Units as weights: bool, of the weight's shape."""
        if not self.unit.axes:
            return units_U.reshape(self.alive.shape)
        return spread_units(units_U, self._cut, self.alive.shape, self.layer.groups)


def smallest(score_N: Tensor, among_N: Tensor, count: int, *, sign: int = 1) -> Tensor:
    """The `count` candidates of the lowest score, of equals those of the lower index: bool, (N,).

    Args:
        score_N: any floating scores without NaN.
        among_N: bool, the candidates.
        count: how many, at most as many as there are.
        sign: -1 for the highest score.
    """
    if count <= 0:
        return torch.zeros_like(among_N)
    on_cpu = among_N.device.type == "cpu" and score_N.dtype in (torch.float32, torch.float64)
    if on_cpu and among_N.is_contiguous() and len(among_N) >= _MANY:
        return torch.from_numpy(_smallest_of_many(score_N.numpy(), among_N.numpy(), count, sign))
    score_N = score_N if sign == 1 else -score_N
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


def _smallest_of_many(score_N: NDArray[Any], among_N: NDArray[np.bool_], count: int, sign: int) -> NDArray[np.bool_]:
    """`smallest` where few of many are wanted: a sample tells below what they are, and only those are searched."""
    chosen = np.zeros(len(among_N), np.bool_)
    step = len(score_N) // _SAMPLE + 1
    sample = np.where(among_N[::step], sign * score_N[::step], np.inf)
    share = count / len(score_N)
    rank = math.ceil(len(sample) * share + 4 * math.sqrt(len(sample) * share * (1 - share)) + 8)
    places = np.empty(0, np.intp)
    if rank < len(sample):
        limit = sign * np.partition(sample, rank)[rank]
        places = np.flatnonzero((score_N <= limit if sign == 1 else score_N >= limit) & among_N)
    if len(places) < count:  # the sample misled, or nearly all are wanted
        places = np.flatnonzero(among_N)
    if count >= len(places):
        chosen[places] = True
        return chosen
    values = sign * score_N[places]
    cutoff = np.partition(values, count - 1)[count - 1]
    below, tied = places[values < cutoff], places[values == cutoff]
    chosen[below] = True
    chosen[tied[: count - len(below)]] = True
    return chosen


def by_layer(layers: Mapping[str, LayerUnits], work: Callable[[str, LayerUnits], T]) -> dict[str, T]:
    """The result of `work` for each layer, computed in the threads that torch has."""
    tasks = [(units.layer.weights, partial(work, key, units)) for key, units in layers.items()]
    on_cpu = all(units.weight.device.type == "cpu" for units in layers.values())
    return dict(zip(layers, in_threads(tasks) if on_cpu else [task() for _, task in tasks], strict=True))


def largest(score_N: Tensor, among_N: Tensor, count: int) -> Tensor:
    """The `count` candidates of the highest score, of equals those of the lower index: bool, (N,)."""
    return smallest(score_N, among_N, count, sign=-1)
