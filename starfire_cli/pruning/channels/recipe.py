"""Recipes of channel removal: a record of how a network was cut to fewer channels, from which its checkpoint can be
loaded again.

A recipe names each layer that changed and the indices that stay, in plain types that fit a checkpoint's metadata:
`{"layer1.0.conv1": {"out": [0, 2]}, "layer1.0.bn1": {"out": [0, 2]}, "layer1.0.conv2": {"in": [0, 2], "bias": True}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        module = modules[name]
        for tensor, axis, kept in list(tensor_cuts(module, cut)):
            _cut(module, tensor, axis, kept)
        _set_sizes(module, cut.get("out"), cut.get("in"))
        if cut.get("bias"):
            weight = module.weight
            assert isinstance(weight, Tensor)
            module.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=weight.requires_grad)


def tensor_cuts(module: nn.Module, cut: Mapping[str, Any]) -> Iterator[tuple[str, int, list[int]]]:
    """(name of a parameter or buffer, axis, indices that stay) of all that a layer's part of a recipe cuts."""
    if "out" in cut:
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, name, None) is not None:
                yield name, 0, cut["out"]
    # A depthwise kernel has one input channel, whatever its layer keeps.
    if "in" in cut and not (isinstance(module, nn.Conv2d) and module.groups > 1):
        yield "weight", 1, cut["in"]


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


def _set_sizes(module: nn.Module, out: Sequence[int] | None, inputs: Sequence[int] | None) -> None:
    if isinstance(module, nn.Conv2d):
        module.out_channels = module.out_channels if out is None else len(out)
        if inputs is not None:
            module.in_channels = len(inputs)
            module.groups = len(inputs) if module.groups > 1 else 1
    elif isinstance(module, nn.Linear):
        module.out_features = module.out_features if out is None else len(out)
        module.in_features = module.in_features if inputs is None else len(inputs)
    elif isinstance(module, _BatchNorm) and out is not None:
        module.num_features = len(out)


def _cut(module: nn.Module, name: str, axis: int, kept: Sequence[int]) -> None:
    tensor = getattr(module, name)
    small = tensor.detach().index_select(axis, torch.tensor(kept, device=tensor.device)).clone()
    if isinstance(tensor, nn.Parameter):
        small = nn.Parameter(small, requires_grad=tensor.requires_grad)
    setattr(module, name, small)
