"""Finds the prunable layers of a checkpoint: by its network where that is known, else by keys and shapes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.fit import differing_ties, differing_ties_text
from starfire_cli.networks.model_spec import trusted_spec, untrusted_text
from starfire_cli.networks.skeleton import BuiltModel, build_skeleton
from starfire_cli.pruning.layers import Layer, layers_of_model, layers_of_state, shares_memory
from starfire_cli.pruning.state_layers import sort_state
from starfire_cli.pruning.ties import masks_once, overlapping, ties_of
from starfire_cli.text import some


@dataclass(frozen=True, kw_only=True)
class Prunable:
    """The layers of a checkpoint.

    Args:
        layers: in model order, in file order without a model.
        left_out: (parameter, why it is none of them).
        network: the modules, without weights; None where nothing says which model it is.
        checkpoint: the one given, with its tensors under the network's keys and tied as there, where there is one, and
            one mask for each layer, under the layer's key.
        notes: what had to be assumed, a sentence each.
        unclear: keys of tensors in `left_out` that may be layers.
    """

    layers: tuple[Layer, ...]
    left_out: tuple[tuple[str, str], ...]
    network: BuiltModel | None
    checkpoint: Checkpoint
    notes: tuple[str, ...]
    unclear: tuple[str, ...] = ()


def prunable(checkpoint: Checkpoint, model: str | None = None, image_size: int | None = None) -> Prunable:
    """Find the layers.

    Args:
        checkpoint: of any format.
        model: spec of its network; None: what the metadata say, if anything.
        image_size: of the images the network takes, where its shapes depend on it.

    Raises:
        BadOption, StarfireError: there is no such model, or the weights are not its.
    """
    notes: list[str] = []
    network = _network(checkpoint, model, image_size, notes)
    unclear: list[str] = []
    if network is not None:
        checkpoint = network.checkpoint
        apart = differing_ties(network.net, checkpoint)
        layers, left_out = layers_of_model(network.net, untied={name for _, name in apart})
        notes += [differing_ties_text(first, name) + "; they count as two" for first, name in apart]
    else:
        ties, overlaps = ties_of(checkpoint.state), overlapping(checkpoint.state)
        shared = ties.keys() | overlaps.keys()
        masked = {ties.get(key, key) for key in checkpoint.masks or ()}
        told = sort_state(checkpoint.state, {key for key in checkpoint.state if ties.get(key, key) in masked})
        layers = layers_of_state(checkpoint.state, told)
        left_out = [(key, f"shares its weight with {first}") for key, first in ties.items()]
        left_out += [(key, shares_memory(other)) for key, other in overlaps.items()]
        left_out += [(key, reason) for key, reason in told.left_out if key not in shared]
        left_out += [(ties[key], f"is {key}, too: {reason}") for key, reason in told.left_out if key in ties]
        left_out += [
            (key, "not floating point, or empty")
            for key, tensor in checkpoint.state.items()
            if tensor.ndim in (2, 4) and not _counts(tensor) and key not in shared
        ]
        if unclear := [key for key in told.unclear if key not in shared]:
            notes.append(
                f"left out, since the file does not tell whether they are layers: {some(unclear)}; give --model"
            )
        if grouped := maybe_grouped(layers):
            notes.append(
                "by their shapes these may be grouped convolutions, taken as one group: "
                f"{some([layer.name for layer in grouped])}; give --model"
            )
    if checkpoint.masks:
        masks = masks_once(checkpoint.masks, ties_of(checkpoint.state), [layer.key for layer in layers], strict=False)
        checkpoint = replace(checkpoint, masks=masks)
    kept = [layer for layer in layers if _counts(checkpoint.state[layer.key])]
    left_out += [(x.name, "not floating point, or empty") for x in layers if not _counts(checkpoint.state[x.key])]
    if not kept:
        notes.append("there is no prunable layer: no weight of a convolution (4 axes) or linear layer (2 axes)")
    return Prunable(
        layers=tuple(kept),
        left_out=tuple(left_out),
        network=network,
        notes=tuple(notes),
        checkpoint=checkpoint,
        unclear=tuple(unclear),
    )


def _counts(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.numel() > 0


def maybe_grouped(layers: Sequence[Layer]) -> list[Layer]:
    """Convolutions that may have groups, which shapes alone cannot tell."""
    convolutions = [layer for layer in layers if layer.kind != "linear"]
    found = []
    for before, layer in itertools.pairwise(convolutions):
        K, C = layer.shape[:2]
        # A depthwise kernel reads one channel; a grouped convolution usually keeps the width of the layer before it.
        keeps_width = layer.kind == "window" and before.shape[0] == K
        if C == 1 < K or (keeps_width and C < K and K % C == 0):
            found.append(layer)
    return found


def _network(checkpoint: Checkpoint, model: str | None, image_size: int | None, notes: list[str]) -> BuiltModel | None:
    """The network that was asked for, or the metadata's; None where there is none."""
    if model is not None:
        return build_skeleton(checkpoint, model, image_size)
    spec = trusted_spec(checkpoint)
    if spec is None:
        named = checkpoint.meta.model.spec
        if named is not None:
            notes.append(untrusted_text(checkpoint, named))
        return None
    try:
        return build_skeleton(checkpoint, spec, image_size)
    except StarfireError as error:
        notes.append(f"the model of the metadata was not used: {error}")
        return None
