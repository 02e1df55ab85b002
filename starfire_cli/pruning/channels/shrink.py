"""Shrinks a network: removes dead channels for good and leaves a smaller dense network that is the same function.

A channel goes if every layer that reads it either reads it with dead weights only, or finds a constant there that its
bias (or the BatchNorm behind it) can take over. See docs/elimination.md for what is declined, and why.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.channels.constants import Constants, check_masks, find_constants
from starfire_cli.pruning.channels.coupling import find_channels
from starfire_cli.pruning.channels.equality import ALLOWED, largest_difference, outputs_on_noise
from starfire_cli.pruning.channels.graph import Traced, fitting_image, trace
from starfire_cli.pruning.channels.recipe import ShrinkRecipe, apply_shrink, shrink_masks
from starfire_cli.pruning.channels.removable import Gains, Removable
from starfire_cli.pruning.masks import Masks
from starfire_cli.pruning.ties import masks_everywhere


@dataclass(frozen=True, kw_only=True)
class ShrunkLayer:
    """The record of one convolution or linear layer.

    Args:
        name: module name.
        outputs: output channels or neurons before and after.
        inputs: input channels or features before and after.
        stayed: reason -> how many outputs without a live weight stayed for it.
    """

    name: str
    outputs: tuple[int, int]
    inputs: tuple[int, int]
    stayed: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ShrinkReport:
    """The result of `shrink`.

    Args:
        model: the small network, in the mode (train or eval) of the one given; a copy of that if nothing could go.
        masks: its masks.
        recipe: how to make it from the full one (`apply_shrink`); empty if nothing could go.
        layers: one record a convolution or linear layer.
        parameters: how many before and after.
        macs: multiply-accumulates on one image of the example's size, before and after.
        declined: why nothing was done at all; None where the model could be followed.
        difference: largest difference of any output on random images, over the largest output, in float64 and before
            folded constants are rounded to the model's own type.
    """

    model: nn.Module
    masks: Masks
    recipe: ShrinkRecipe = field(default_factory=dict)
    layers: tuple[ShrunkLayer, ...] = ()
    parameters: tuple[int, int]
    macs: tuple[int, int] = (0, 0)
    declined: str | None = None
    difference: float = 0.0


@torch.no_grad()
def shrink(model: nn.Module, masks: Mapping[str, Tensor], *, example: Tensor | None = None) -> ShrinkReport:
    """A copy of `model` without its removable channels; in eval mode its outputs are the same.

    Args:
        model: not changed.
        masks: what is dead, by state-dict key; a layer without a mask is alive.
        example: an image or batch the model takes, (N, C, H, W); its values do not matter. None: usual sizes are tried.

    Raises:
        Mismatch: a dead weight is not zero.
        StarfireError: a mask has no weight, the model takes no such image, or, which would be a bug, outputs differ.
    """
    check_masks(model, masks)
    parameters = sum(p.numel() for p in model.parameters())
    try:
        traced = trace(model)
    except StarfireError as error:
        same = {k: m.clone() for k, m in masks.items()}
        counts = (parameters, parameters)
        return ShrinkReport(model=copy.deepcopy(model), masks=same, parameters=counts, declined=str(error))
    image = fitting_image(traced, example)
    everywhere = masks_everywhere(model, masks)
    found = find_constants(traced, everywhere, image)
    channels = find_channels(traced, found)
    removable = Removable(traced, everywhere, found, channels)
    gains = removable.gains()
    recipe = removable.recipe(gains)
    macs_before = _macs(traced, found)
    before = outputs_on_noise(traced.model, image)
    rebuild(traced.model, recipe, gains)
    difference = largest_difference(before, outputs_on_noise(traced.model, image))
    if not difference <= ALLOWED:
        raise StarfireError(f"the shrunk network's outputs differ by {difference:.1e} of the largest; nothing was done")
    small = copy.deepcopy(model)
    rebuild(small, recipe, gains)
    return ShrinkReport(
        model=small,
        masks=shrink_masks(masks, recipe),
        recipe=recipe,
        layers=tuple(_records(model, small, removable)),
        parameters=(parameters, sum(p.numel() for p in small.parameters())),
        macs=(macs_before, _macs(traced, found)),
        difference=difference,
    )


@torch.no_grad()
def rebuild(model: nn.Module, recipe: ShrinkRecipe, gains: Gains) -> None:
    """Fold the constants into what takes them over, then cut; in place."""
    for name, (taker, gain_O) in gains.items():
        if taker == "bias":
            _add(model.get_submodule(name).bias, gain_O)
        elif taker != "new bias":
            _add(model.get_submodule(taker).running_mean, -gain_O)
    apply_shrink(model, recipe)
    for name, (taker, gain_O) in gains.items():
        if taker == "new bias":
            _add(model.get_submodule(name).bias, gain_O[recipe[name].get("out", slice(None))])


def _add(tensor: Tensor | nn.Module, gain: Tensor) -> None:
    assert isinstance(tensor, Tensor)
    tensor.copy_(tensor.to("cpu", torch.float64) + gain)


def _macs(traced: Traced, found: Constants) -> int:
    """Multiply-accumulates of all convolutions and linear layers on one image, by the weights they have now."""
    total = 0
    for node, shape in found.shapes.items():
        if traced.role(node) in ("conv", "linear"):
            weight = traced.module(node).weight
            assert isinstance(weight, Tensor)
            places = math.prod(shape[2:]) if weight.ndim == 4 else math.prod(shape[:-1])
            total += places * weight.numel()
    return total


def _records(model: nn.Module, small: nn.Module, removable: Removable) -> Iterator[ShrunkLayer]:
    after = dict(small.named_modules())
    for name, module in model.named_modules():
        new = after[name]
        if isinstance(module, nn.Conv2d) and isinstance(new, nn.Conv2d):
            outputs, inputs = (module.out_channels, new.out_channels), (module.in_channels, new.in_channels)
        elif isinstance(module, nn.Linear) and isinstance(new, nn.Linear):
            outputs, inputs = (module.out_features, new.out_features), (module.in_features, new.in_features)
        else:
            continue
        yield ShrunkLayer(name=name, outputs=outputs, inputs=inputs, stayed=removable.stayed(name))
