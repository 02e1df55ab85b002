"""Recipes of channel removal: a record of how a network was cut to fewer channels, from which its checkpoint can be
loaded again.

A recipe names each layer that changed and the indices that stay, in plain types that fit a checkpoint's metadata:
`{"layer1.0.conv1": {"out": [0, 2]}, "layer1.0.bn1": {"out": [0, 2]}, "layer1.0.conv2": {"in": [0, 2], "bias": True}}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.masks import Masks

ShrinkRecipe = dict[str, dict[str, Any]]


@torch.no_grad()
def apply_shrink(model: nn.Module, recipe: Mapping[str, Mapping[str, Any]]) -> None:
    """Cut a network, in place, as `recipe` says; its state dict then has the shapes of the shrunk one.

    Build the full network, apply the recipe, load the state. Weights that stay keep their values; a bias that the
    recipe adds starts at zero.

    Raises:
        StarfireError: the recipe does not fit the model. Nothing was changed.
    """
    modules = dict(model.named_modules())
    for name, cut in recipe.items():
        _check(name, modules.get(name), cut)
    for name, cut in recipe.items():
        module, out, inputs = modules[name], cut.get("out"), cut.get("in")
        if isinstance(module, nn.Conv2d):
            _cut_conv(module, out, inputs)
        elif isinstance(module, nn.Linear):
            _cut_linear(module, out, inputs)
        elif isinstance(module, _BatchNorm) and out is not None:
            _cut(module, ("weight", "bias", "running_mean", "running_var"), 0, out)
            module.num_features = len(out)
        if cut.get("bias"):
            weight = module.weight
            assert isinstance(weight, Tensor)
            module.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=weight.requires_grad)


def compose_recipes(first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]) -> ShrinkRecipe:
    """The recipe that does `first`, then `second` (whose indices count what `first` left)."""
    both: ShrinkRecipe = {name: dict(cut) for name, cut in first.items()}
    for name, cut in second.items():
        mine = both.setdefault(name, {})
        for side, kept in cut.items():
            old = mine.get(side)
            mine[side] = [old[i] for i in kept] if isinstance(old, list) else kept
    return both


def shrink_masks(masks: Mapping[str, Tensor], recipe: Mapping[str, Mapping[str, Any]]) -> Masks:
    """The masks of the shrunk network."""
    small: Masks = {}
    for key, mask in masks.items():
        cut = recipe.get(key.removesuffix(".weight"), {})
        for axis, side in enumerate(("out", "in")):
            # A depthwise kernel has one input channel, whatever its layer keeps.
            if side in cut and not (side == "in" and mask.shape[1] == 1 and mask.ndim == 4):
                mask = mask.index_select(axis, torch.tensor(cut[side], device=mask.device))
        small[key] = mask.clone()
    return small


def _check(name: str, module: nn.Module | None, cut: Mapping[str, Any]) -> None:
    if isinstance(module, nn.Conv2d):
        sizes = {"out": module.out_channels, "in": module.in_channels}
    elif isinstance(module, nn.Linear):
        sizes = {"out": module.out_features, "in": module.in_features}
    elif isinstance(module, _BatchNorm):
        sizes = {"out": module.num_features}
    else:
        what = "no such layer" if module is None else f"a {type(module).__name__} there"
        raise StarfireError(f"the recipe cuts {name!r}, and the model has {what}")
    for side, kept in cut.items():
        if side == "bias" and kept is True and not isinstance(module, _BatchNorm) and module.bias is None:
            continue
        if side not in sizes or not _indices(kept, sizes[side]):
            raise StarfireError(f"the recipe's {side!r} for {name} does not fit a {type(module).__name__} of {sizes}")


def _indices(kept: object, size: int) -> bool:
    if not isinstance(kept, list) or not kept or not all(type(i) is int for i in kept):
        return False
    return kept[0] >= 0 and kept[-1] < size and all(a < b for a, b in pairwise(kept))


def _cut_conv(conv: nn.Conv2d, out: Sequence[int] | None, inputs: Sequence[int] | None) -> None:
    if out is not None:
        _cut(conv, ("weight", "bias"), 0, out)
        conv.out_channels = len(out)
    if inputs is not None:
        if conv.groups > 1:
            conv.groups = len(inputs)
        else:
            _cut(conv, ("weight",), 1, inputs)
        conv.in_channels = len(inputs)


def _cut_linear(linear: nn.Linear, out: Sequence[int] | None, inputs: Sequence[int] | None) -> None:
    if out is not None:
        _cut(linear, ("weight", "bias"), 0, out)
        linear.out_features = len(out)
    if inputs is not None:
        _cut(linear, ("weight",), 1, inputs)
        linear.in_features = len(inputs)


def _cut(module: nn.Module, names: Sequence[str], axis: int, kept: Sequence[int]) -> None:
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        small = tensor.detach().index_select(axis, torch.tensor(kept, device=tensor.device)).clone()
        if isinstance(tensor, nn.Parameter):
            small = nn.Parameter(small, requires_grad=tensor.requires_grad)
        setattr(module, name, small)
