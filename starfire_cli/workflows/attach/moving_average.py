"""Finds the network of averaged weights behind its wrappers, and refuses one that is no average of the model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from starfire_cli.errors import BadOption
from starfire_cli.pruning.ties import parameters_of
from starfire_cli.workflows.attach.parts import kind_of


def plain_average(ema: object, network: nn.Module, keys: Collection[str]) -> nn.Module | None:
    """The network of averaged weights, behind its wrappers; None where there is none.

    Args:
        ema: what `starfire.attach` was given.
        network: the network in training.
        keys: of its pruned weights.

    Raises BadOption where it has not these weights, has others, or is the network in training itself.
    """
    if ema is None:
        return None
    weights = parameters_of(network)
    average = _inner_network(ema, keys or weights.keys())
    shadows = parameters_of(average)
    if average is network:
        raise BadOption(
            f"ema is the model itself, whose weights are in training; {_WORKS}, or leave ema out where there is none"
        )
    for key in keys:
        if weights[key].shape != shadows[key].shape:
            shapes = f"{tuple(shadows[key].shape)} there and {tuple(weights[key].shape)} in the model"
            raise BadOption(f"ema is no average of this model: {key} is {shapes}")
    shared = [key for key in keys if _memory(weights[key]) == _memory(shadows[key])]
    if shared:
        raise BadOption(f"ema shares the memory of {shared[0]} with the model, so that it averages nothing; {_WORKS}")
    return average


_WORKS = "a copy works, such as torch.optim.swa_utils.AveragedModel(model)"


def _memory(tensor: Tensor) -> int:
    """The address of what a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def _inner_network(ema: object, keys: Collection[str]) -> nn.Module:
    found: Any = ema
    while found is not None:
        found = getattr(found, "_orig_mod", found)
        if isinstance(found, nn.Module) and parameters_of(found).keys() >= set(keys):
            return found
        found = getattr(found, "module", None) or getattr(found, "ema", None)  # the latter in YOLO's way
    raise BadOption(
        f"ema is a {kind_of(ema)} without a network whose parameters are called as the model's; "
        "torch.optim.swa_utils.AveragedModel and timm's ModelEmaV3 have one"
    )
