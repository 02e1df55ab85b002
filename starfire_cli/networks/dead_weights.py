"""Finds the dead weights of a checkpoint: by its masks, and by its zeros where a layer has no mask."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from starfire_cli.pruning import Layer, Masks

_BY_CHANCE = 0.01  # of a layer's weights; trained weights are hardly ever exactly zero


@dataclass(frozen=True, kw_only=True)
class DeadWeights:
    """The weights of a loaded checkpoint that count as pruned.

    Args:
        masks: True where a weight is alive, of every layer that has dead weights or came with a mask.
        by_mask: how many weights of each layer a stored mask calls dead.
        by_zeros: how many weights of each layer without a mask are dead because they are zero.
        untrained: names of layers that are zero as a whole and may train all the same.
    """

    masks: Masks
    by_mask: Mapping[str, int]
    by_zeros: Mapping[str, int]
    untrained: tuple[str, ...]


def find_dead_weights(
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None,
    layers: Sequence[Layer],
    *,
    zeros: bool = True,
    fresh: Container[str] = (),
) -> DeadWeights:
    """Decide layer by layer: the stored mask, else the zeros, if the network is pruned at all.

    It is if a mask has dead weights, or a layer more zeros than a few by chance. A layer of nothing but zeros is no
    sign of it, since it may never have been trained. In a pruned network it was pruned away as a whole, unless it is
    the last one, without which the network says the same of every image.

    Args:
        state: the weights, by key.
        masks: the stored masks, by key; those of other tensors than `layers` are passed over.
        layers: all layers of the network that can be pruned, in their order.
        zeros: whether zeros count at all.
        fresh: keys of weights that did not come from the checkpoint, of which nothing is dead.
    """
    came = [layer for layer in layers if layer.key not in fresh]
    stored = {layer.key: masks[layer.key] for layer in came if masks and layer.key in masks}
    by_mask = {key: dead for key, mask in stored.items() if (dead := mask.numel() - int(mask.sum()))}
    shown = {layer: nonzero(state[layer.key]) for layer in came if zeros and layer.key not in stored}
    zero = {layer: alive.numel() - int(alive.sum()) for layer, alive in shown.items()}
    pruned = bool(by_mask) or any(layer.weights > count >= _BY_CHANCE * layer.weights for layer, count in zero.items())
    untrained = [x for x, count in zero.items() if count == x.weights and not (pruned and x is not layers[-1])]
    counted = [layer for layer, count in zero.items() if count and pruned and layer not in untrained]
    return DeadWeights(
        masks=stored | {layer.key: shown[layer] for layer in counted},
        by_mask=by_mask,
        by_zeros={layer.key: zero[layer] for layer in counted},
        untrained=tuple(layer.name for layer in untrained),
    )


def nonzero(weight: Tensor) -> Tensor:
    """True where a weight of any floating type is not zero."""
    return (weight if weight.dtype.itemsize > 1 else weight.float()) != 0
