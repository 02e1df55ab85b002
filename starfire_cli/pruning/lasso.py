"""The lasso as a method's penalty: on which weights or scales, how strong, and what is dead when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from starfire_cli.errors import BadOption
from starfire_cli.pruning.channels.branches import branches_of
from starfire_cli.pruning.layers import Layer, layers_of_model
from starfire_cli.pruning.masked_weights import MaskedWeights
from starfire_cli.pruning.masks import Masks
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.penalties import L1, GroupLasso, Term, TermSum, strength_for_ratio
from starfire_cli.pruning.units import Cut, rank_units, spread_units

FILTER, CHANNEL, COLUMN, LAYER = "CRS", "KRS", "K", "KCRS"


@dataclass(frozen=True, kw_only=True)
class Lasso:
    """Group lasso on units of the pruned layers, in the era.

    Args:
        units: the axes that a group of each kind spans. Whole layers are those of residual branches, which the network
            can do without.
        strength: what the sum is multiplied with; None: set on the first batch.
        ratio: then the penalty's share of loss and penalty together.
        eps: under the root of a group's norm.
        weighted: a group counts as often as the square root of its number of weights.
        removable: of filters and input channels only those that could be removed (see `removable_units`).
        zero_below: smaller weights are set to zero after each step; units of only zeros are dead from the era's end on.
    """

    units: tuple[str, ...]
    strength: float | None = None
    ratio: float = 0.0
    eps: float = 0.0
    weighted: bool = False
    removable: bool = False
    zero_below: float = 0.0

    def bind(self, model: nn.Module, tensors: MaskedWeights) -> BoundLasso:
        """The penalty on a model. Raises BadOption where there is nothing that it could be on."""
        kinds = self._units(model, tensors)
        found = [(layer, units) for layer in tensors.layers if (units := kinds[layer.key])]
        if not found:
            raise BadOption("the network has no layer to penalise")
        rules = [GroupLasso(units, eps=self.eps, weighted=self.weighted) for _, units in found]
        terms = [Term(tensors.weights[x.key], rule, x.groups) for (x, _), rule in zip(found, rules, strict=True)]
        return BoundLasso(self, TermSum(terms), found, tensors)

    def _units(self, model: nn.Module, tensors: MaskedWeights) -> dict[str, tuple[str, ...]]:
        """The kinds of groups in each layer, by key."""
        without: dict[str, set[str]] = {layer.key: set() for layer in tensors.layers}
        if self.removable:
            for key, units in removable_units(model, tensors.layers).items():
                without[key] |= {FILTER, CHANNEL} - set(units)
        if LAYER in self.units:
            inside = {f"{name}.weight" for branch in branches_of(model) for name in branch.layers}
            for key in without.keys() - inside:
                without[key].add(LAYER)
        return {key: tuple(unit for unit in self.units if unit not in gone) for key, gone in without.items()}


@dataclass(frozen=True, kw_only=True)
class ScaleLasso:
    """L1 on the scales of BatchNorm, in the era.

    Args:
        strength: what the sum of |gamma| is multiplied with.
    """

    strength: float

    def bind(self, model: nn.Module, tensors: MaskedWeights) -> BoundLasso:
        """The penalty on a model. Raises BadOption where it has no BatchNorm."""
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        terms = [Term(norm.weight, L1()) for norm in norms if norm.weight is not None]
        if not terms:
            raise BadOption("the network has no BatchNorm, whose scales are what the penalty is on")
        return BoundLasso(Lasso(units=(), strength=self.strength), TermSum(terms), [], tensors)


class BoundLasso:
    """The lasso of one model.

    Args:
        axis: its settings.
        terms: what it is on.
        layers: with the kinds of groups in each; none where it is on other parameters.
        tensors: the weights that have masks.
    """

    captured: ClassVar[bool] = True

    def __init__(
        self,
        axis: Lasso,
        terms: TermSum,
        layers: Sequence[tuple[Layer, tuple[str, ...]]],
        tensors: MaskedWeights,
    ) -> None:
        self._axis, self._terms, self._layers, self._tensors = axis, terms, layers, tensors
        self.strength = axis.strength

    @property
    def needs_loss(self) -> bool:
        """Whether `begin` has to be called before the first step."""
        return self._axis.strength is None

    def begin(self, loss: float) -> None:
        """Set the strength by the mean loss of a batch, without the penalty."""
        self.strength = strength_for_ratio(self._axis.ratio, loss, float(self._terms.total()))

    def add_gradients(self, moment: Moment) -> None:
        if _acts(moment):
            assert self.strength is not None, "the strength is set on the first batch"
            self._terms.strength.fill_(self.strength)
            self._terms.add_gradients()

    def after_step(self, moment: Moment) -> None:
        if not self._axis.zero_below or not _acts(moment):
            return
        for layer, _ in self._layers:
            zero_below(self._tensors.weights[layer.key].data, self._axis.zero_below)
        if moment.step == moment.era.last_step:
            self._tensors.load(self._live())

    def state_dict(self) -> dict[str, Any]:
        return {"strength": self.strength}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.strength = state["strength"]

    def _live(self) -> Masks:
        tensors, masks = self._tensors, dict(self._tensors.masks)
        for layer, units in self._layers:
            masks[layer.key] = masks[layer.key] & live_units(tensors.weights[layer.key].detach(), layer, units)
        return masks


def removable_units(model: nn.Module, layers: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    """The kinds of units, filters and input channels, that can be removed from each layer, by key: no input channel of
    the first layer, no filter of the last, and neither of depthwise convolutions, which go along with what they filter.
    """
    every, _ = layers_of_model(model)
    ends = ((FILTER, every[-1].key), (CHANNEL, every[0].key))
    return {x.key: () if x.depthwise else tuple(unit for unit, end in ends if x.key != end) for x in layers}


def zero_below(weight: Tensor, limit: float) -> None:
    """Set weights of a magnitude below `limit` to +0.0, in place."""
    largest = torch.nextafter(*(torch.tensor(value, dtype=weight.dtype) for value in (limit, 0.0)))
    torch.ops.aten.hardshrink.out(weight, float(largest), out=weight)


def live_units(weight: Tensor, layer: Layer, units: Sequence[str], limit: float = 0.0) -> Tensor:
    """A mask of the weight's shape without the units of these kinds in which no weight is larger than `limit`, but for
    the strongest: a layer goes as a whole only where whole layers are the units.
    """
    alive = torch.ones_like(weight, dtype=torch.bool)
    for unit in units:
        cut = Cut(unit, "", 0, reduce="max")
        score = rank_units(weight, torch.ones_like(alive), cut, layer.groups)[0]
        live = score > limit if unit == LAYER else (score > limit) | (score == score.max())
        alive &= spread_units(live.reshape(-1), cut, layer.shape, layer.groups)
    return alive


def live_channels(
    model: nn.Module,
    layers: Sequence[Layer],
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    threshold: float,
) -> Masks:
    """The masks without filters and input channels in which no weight is larger than `threshold`.

    Only of those that could be removed (see `removable_units`); every layer keeps its strongest of each kind.

    Args:
        model: whose layers these are.
        layers: some of them.
        weights: by key.
        masks: what is alive so far, likewise.
        threshold: PruneTrain's 1e-4, of |w|.
    """
    kinds = removable_units(model, layers)
    return {x.key: masks[x.key] & live_units(weights[x.key].detach(), x, kinds[x.key], threshold) for x in layers}


def _acts(moment: Moment) -> bool:
    return moment.era.first_step < moment.step <= moment.era.last_step
