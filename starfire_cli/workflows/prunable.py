"""Which layers of a checkpoint can be pruned: told by its network where that is known, else by its keys and shapes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint import Checkpoint
from starfire_cli.pruning.layers import Layer, layers_of_model, layers_of_state
from starfire_cli.pruning.state_layers import sort_state
from starfire_cli.text import some
from starfire_cli.workflows.rebuild import Rebuilt, known_spec, said_of_model, skeleton, untrusted


@dataclass(frozen=True, kw_only=True)
class Prunable:
    """The layers of a checkpoint.

    Args:
        layers: in model order, in file order without a model.
        left_out: (parameter, why it is none of them).
        network: the modules, without weights; None where nothing says which model it is.
        notes: what had to be assumed, a sentence each.
        checkpoint: the checkpoint, with its tensors under the network's keys where there is one.
        unclear: keys of tensors in `left_out` that may be layers.
    """

    layers: tuple[Layer, ...]
    left_out: tuple[tuple[str, str], ...]
    network: Rebuilt | None
    notes: tuple[str, ...]
    checkpoint: Checkpoint
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
        layers, left_out = layers_of_model(network.net)
    else:
        shared = checkpoint.state.keys() - distinct(checkpoint.state).keys()
        told = sort_state(checkpoint.state, checkpoint.masks or ())
        layers = [layer for layer in layers_of_state(checkpoint.state, told) if layer.key not in shared]
        left_out = [(key, "shares its memory with another tensor") for key in checkpoint.state if key in shared]
        left_out += [(key, reason) for key, reason in told.left_out if key not in shared]
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


def distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that lie at different places; of those that share one (tied weights) the first."""
    places: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    found = {}
    for key, tensor in state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in places:
            continue
        places.add(place)
        found[key] = tensor
    return found


def _network(checkpoint: Checkpoint, model: str | None, image_size: int | None, notes: list[str]) -> Rebuilt | None:
    """The network that was asked for, or the metadata's; None where there is none."""
    if model is not None:
        return skeleton(checkpoint, model, image_size)
    spec = known_spec(checkpoint)
    if spec is None:
        named = said_of_model(checkpoint).get("spec")
        if isinstance(named, str):
            notes.append(untrusted(checkpoint, named))
        return None
    try:
        return skeleton(checkpoint, spec, image_size)
    except StarfireError as error:
        notes.append(f"the model of the metadata was not used: {error}")
        return None
