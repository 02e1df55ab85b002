"""The units of a layer at an evaluation: their scores, the live ones, and their order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.pruning._threads import in_threads
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.memory_order import MemoryOrder
from starfire_cli.pruning.selection import (
    Lists,
    count_flags,
    first,
    largest,
    list_candidates,
    on_host,
    pieces,
    places_of,
    smallest,
    smallest_by_sign,
)
from starfire_cli.pruning.units import Cut, rank_units, spread_units

Reduce = Literal["max", "sum", "mean", "norm"]
T = TypeVar("T")
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

    Vectors of single weights, (U,), are in the order in which the weights lie in memory, so that no pass has to jump
    about in it; vectors of larger units are in the order of their numbers.

    Args:
        layer: its kind, shape and groups count.
        unit: what they are.
        weight: of the layer's shape.
        alive: bool, likewise; a unit lives if any of its weights does.
        gradient: of the loss by each weight, also by dead ones; None where nobody asked for it.
        momentum: its running average, also of dead weights.
        signs: of each weight as it was before the optimizer's step: 1, 0 or -1.
        factor: gamma / sigma of the BatchNorm that follows, (K,); None where none does, or nobody asked for it.
        lists: what lists candidates for a selection.
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
        lists: Lists = list_candidates,
    ) -> None:
        self.layer, self.unit = layer, unit
        self.weight, self.alive = weight, alive
        self.gradient, self.momentum, self.signs, self.factor = gradient, momentum, signs, factor
        self.lists = lists
        self._cut = Cut(unit.axes, "", 0, reduce=unit.reduce)

    @cached_property
    def alive_U(self) -> Tensor:
        """The units that live: bool, (U,)."""
        if not self.unit.axes:
            return self.flat(self.alive)
        return rank_units(self.alive.float(), self.alive, self._cut, self.layer.groups)[1].reshape(-1)

    @cached_property
    def order(self) -> MemoryOrder | None:
        """The order of vectors of units; None: that of their numbers."""
        if self.unit.axes or self.weight.ndim != 4 or self.weight.is_contiguous():
            return None
        if not self.weight.is_contiguous(memory_format=torch.channels_last):
            return None
        _, C, R, S = self.weight.shape
        return MemoryOrder(channels=C, window=R * S)

    def flat(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as a vector of single weights, (U,); a view if it lies as the weight does."""
        return (tensor if self.order is None else tensor.permute(0, 2, 3, 1)).reshape(-1)

    def smallest(self, score_U: Tensor, among_U: Tensor, count: int) -> Tensor:
        """The `count` candidates of the lowest score, of equals those of the lower number: bool, (U,)."""
        return smallest(score_U, among_U, count, order=self.order, lists=self.lists)

    def largest(self, score_U: Tensor, among_U: Tensor, count: int) -> Tensor:
        """The `count` candidates of the highest score, of equals those of the lower number: bool, (U,)."""
        return largest(score_U, among_U, count, order=self.order, lists=self.lists)

    def smallest_by_sign(self, score_U: Tensor, among_U: Tensor, share: Callable[[int], int]) -> Tensor:
        """`smallest` of the candidates above 0, and of all others, `share` of so many: bool, (U,)."""
        return smallest_by_sign(score_U, among_U, share, order=self.order, lists=self.lists)

    def numbered(self, chosen_U: Tensor) -> Tensor:
        """The places of some units in vectors of units, in the order of their numbers: int64."""
        places = places_of(chosen_U)
        return places if self.order is None else places[self.order.indices(places).argsort()]

    def first(self, among_U: Tensor, count: int) -> Tensor:
        """The `count` candidates of the lowest numbers: bool, (U,)."""
        return first(among_U, count, self.order)

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
        return count_flags(self.alive_U)

    def scores(self, tensor: Tensor) -> Tensor:
        """The units' scores from |tensor|, (U,); of dead units as of live ones.

        Those of single weights still have the tensor's signs, which do not count (see `selection.py`).
        """
        if not self.unit.axes:
            flat = self.flat(tensor.detach())
            return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
        every = torch.ones_like(tensor, dtype=torch.bool)
        return rank_units(tensor, every, self._cut, self.layer.groups)[0].reshape(-1)

    @property
    def deviation(self) -> float:
        """The standard deviation of the live weights; the dead ones are zero, and so add nothing to either sum."""
        live = max(1, count_flags(self.flat(self.alive)))
        total, square = _moments(self.flat(self.weight))
        return math.sqrt(max(0.0, square / live - (total / live) ** 2))

    def magnitudes(self) -> Tensor:
        """The units' scores from |w|, (U,); see `scores`. Raises StarfireError where a weight is NaN or inf."""
        weight = self.weight
        if not bool(weight.sum().isfinite()) and not bool(weight.isfinite().all()):
            raise StarfireError(f"{self.layer.key} holds NaN or inf; its smallest weights cannot be told")
        return self.scores(self.weight)

    def spread(self, units_U: Tensor) -> Tensor:
        """Units as weights: bool, of the weight's shape."""
        if not self.unit.axes:
            if self.order is None:
                return units_U.reshape(self.alive.shape)
            K, C, R, S = self.alive.shape
            return units_U.reshape(K, R, S, C).permute(0, 3, 1, 2)
        return spread_units(units_U, self._cut, self.alive.shape, self.layer.groups)


def by_layer(layers: Mapping[str, LayerUnits], work: Callable[[str, LayerUnits], T]) -> dict[str, T]:
    """The result of `work` for each layer, computed in the threads that torch has."""
    tasks = [(units.layer.weights, partial(work, key, units)) for key, units in layers.items()]
    on_cpu = all(units.weight.device.type == "cpu" for units in layers.values())
    return dict(zip(layers, in_threads(tasks) if on_cpu else [task() for _, task in tasks], strict=True))


def _moments(values_N: Tensor) -> tuple[float, float]:
    """The sum of some values and that of their squares, in float64."""
    if not on_host(values_N):
        square = float(torch.linalg.vector_norm(values_N, dtype=torch.float64)) ** 2
        return float(values_N.sum(dtype=torch.float64)), square
    total = square = 0.0
    for piece in pieces(values_N.numel()):
        exact = values_N[piece].numpy().astype(np.float64)
        total += float(exact.sum())
        square += float(np.square(exact, out=exact).sum())
    return total, square
