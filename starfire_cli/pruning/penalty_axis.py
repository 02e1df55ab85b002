"""The penalty axis of a method: which weights are penalised, how strongly, and what is dead when the penalty ends.

An axis value is frozen and knows no network; `bind` makes of it the penalty of one network, which the pruner calls
before and after each step of the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from starfire_cli.errors import BadOption
from starfire_cli.pruning.layers import Layer, layers_of_model
from starfire_cli.pruning.masks import Masks
from starfire_cli.pruning.penalties import L1, GroupLasso, Penalty, Term, strength_for_ratio
from starfire_cli.pruning.ties import parameters_of
from starfire_cli.pruning.units import Cut, rank_units, spread_units


class NetworkPenalty(Protocol):
    """The penalty of one network.

    Attributes:
        needs_loss: whether `begin` has to be told the loss of a batch.
    """

    @property
    def needs_loss(self) -> bool: ...

    def begin(self, loss: float) -> None:
        """Before the first step of a new run: the mean loss of a batch, without the penalty."""
        ...

    def switch(self, on: bool) -> None:
        """Whether the penalty acts in the steps that follow."""
        ...

    def before_step(self) -> None:
        """Between backward and the optimizer's step: add the penalty's gradient."""
        ...

    def after_step(self, rate: float) -> None:
        """After the optimizer's step at this learning rate: what is done to weights directly."""
        ...

    def dead(self) -> Masks:
        """What is dead for good when the penalty ends, by state-dict key, True = alive; may lack layers."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is remembered beside the weights."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


class PenaltyAxis(Protocol):
    """A penalty, whatever the network."""

    def bind(self, model: nn.Module, layers: Sequence[Layer]) -> NetworkPenalty:
        """The penalty of a network on these layers. Raises BadOption where the network has nothing to penalise."""
        ...


@dataclass(frozen=True, kw_only=True)
class Lasso:
    """Group lasso on units of the layers, or L1 on BatchNorm's scales.

    Args:
        units: the axes that a group of each kind spans; none: the scales of BatchNorm.
        strength: what the sum is multiplied with; None: set on the first batch by `ratio`.
        ratio: the penalty as a share of loss and penalty.
        eps: under the root.
        weighted: groups count by the square root of their size.
        removable: only groups that could be removed: no input channels of the first layer, no filters of the last, and
            nothing of depthwise convolutions.
        zero_below: weights smaller than this are set to zero after each step, and units of zeros are dead in the end.
    """

    units: tuple[str, ...]
    strength: float | None = None
    ratio: float = 0.0
    eps: float = 0.0
    weighted: bool = False
    removable: bool = False
    zero_below: float = 0.0

    def bind(self, model: nn.Module, layers: Sequence[Layer]) -> NetworkPenalty:
        parameters = parameters_of(model)
        if not self.units:
            norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.weight is not None]
            if not norms:
                raise BadOption("the penalty is on the scales of BatchNorm, and the network has none")
            return _Lassoed(self, [Term(norm.weight, L1()) for norm in norms], [], parameters)
        kinds = kinds_of_units(model, layers) if self.removable else {x.key: self.units for x in layers}
        terms, penalised = [], []
        for layer in layers:
            units = tuple(unit for unit in self.units if unit in kinds[layer.key])
            if units:
                rule = GroupLasso(units, eps=self.eps, weighted=self.weighted)
                terms.append(Term(parameters[layer.key], rule, layer.groups))
                penalised.append(layer)
        if not terms:
            raise BadOption("the penalty has no layer to be on")
        return _Lassoed(self, terms, penalised, parameters)


def kinds_of_units(model: nn.Module, layers: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    """Which of filters ("CRS") and input channels ("KRS") of each layer can be removed from a network, by key: no input
    channel of its first layer, no filter of its last, and neither of depthwise convolutions.
    """
    every, _ = layers_of_model(model)
    first, last = every[0].key, every[-1].key
    return {
        layer.key: ()
        if layer.depthwise
        else tuple(unit for unit, end in (("CRS", last), ("KRS", first)) if layer.key != end)
        for layer in layers
    }


class _Lassoed:
    def __init__(
        self, axis: Lasso, terms: Sequence[Term], layers: Sequence[Layer], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        self._axis = axis
        self._penalty = Penalty(terms)
        self._layers = {layer.key: layer for layer in layers}
        self._weights = {layer.key: parameters[layer.key] for layer in layers}
        self._strength = axis.strength
        self._over = False

    @property
    def needs_loss(self) -> bool:
        return self._axis.strength is None

    @property
    def strength(self) -> float:
        """What the penalty is multiplied with where it acts."""
        assert self._strength is not None, "the strength is set on the first batch"
        return self._strength

    def begin(self, loss: float) -> None:
        self._strength = strength_for_ratio(self._axis.ratio, loss, float(self._penalty.total()))

    def switch(self, on: bool) -> None:
        self._over = not on
        self._penalty.strength.fill_(self.strength if on else 0.0)

    def before_step(self) -> None:
        if not self._over:
            self._penalty.add_gradients()

    def after_step(self, rate: float) -> None:
        if self._axis.zero_below and not self._over:
            for weight in self._weights.values():
                zero_below(weight.data, self._axis.zero_below)

    def dead(self) -> Masks:
        if not self._axis.zero_below:
            return {}
        return {key: live_units(w.detach(), self._layers[key], self._axis.units) for key, w in self._weights.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"strength": self._strength}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._strength = state["strength"]


def zero_below(weight: Tensor, limit: float) -> None:
    """Set weights of a magnitude below `limit` to +0.0, in place."""
    below = torch.nextafter(torch.tensor(limit, dtype=weight.dtype), torch.tensor(0.0, dtype=weight.dtype))
    torch.ops.aten.hardshrink.out(weight, float(below), out=weight)


def live_units(weight: Tensor, layer: Layer, units: Sequence[str]) -> Tensor:
    """A mask of the weight's shape without the units of only zeros."""
    alive = torch.ones_like(weight, dtype=torch.bool)
    for unit in units:
        cut = Cut(unit, "", 0, reduce="max")
        score = rank_units(weight, torch.ones_like(alive), cut, layer.groups)[0]
        alive &= spread_units(score.reshape(-1) != 0, cut, layer.shape, layer.groups)
    return alive
