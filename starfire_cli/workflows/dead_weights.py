"""Tells which weights of a checkpoint are dead: by its masks, and by its zeros where a layer has no mask."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from starfire_cli.pruning import Layer, Masks

_BY_CHANCE = 0.01  # of a layer's weights; trained weights are hardly ever exactly zero


@dataclass(frozen=True, kw_only=True)
class DeadWeights:
    """What counts as pruned when a checkpoint comes in.

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
    """Decide layer by layer: the stored mask, else the zeros where there are more than a few by chance.

    A layer of nothing but zeros was pruned away as a whole if other layers are pruned, too. It was never trained where
    nothing else is pruned, or where it is the last one, without which the network says the same of every image.

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
    found, by_zeros, empty = dict(stored), {}, []
    for layer in came if zeros else ():
        if layer.key in stored:
            continue
        alive = nonzero(state[layer.key])
        dead = alive.numel() - int(alive.sum())
        if dead == alive.numel():
            empty.append((layer, alive))
        elif dead >= _BY_CHANCE * alive.numel():
            found[layer.key], by_zeros[layer.key] = alive, dead
    untrained = []
    pruned = bool(by_mask or by_zeros)
    for layer, alive in empty:
        if pruned and layer is not layers[-1]:
            found[layer.key], by_zeros[layer.key] = alive, alive.numel()
        else:
            untrained.append(layer.name)
    return DeadWeights(masks=found, by_mask=by_mask, by_zeros=by_zeros, untrained=tuple(untrained))


def nonzero(weight: Tensor) -> Tensor:
    """Where a weight of any floating type is not zero."""
    return (weight if weight.dtype.itemsize > 1 else weight.float()) != 0
