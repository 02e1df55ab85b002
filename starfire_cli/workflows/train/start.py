"""The starting point of a run: a checkpoint's weights or fresh ones, their dead weights, and the layers to prune."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.dead_weights import DeadWeights, find_dead_weights, nonzero
from starfire_cli.networks.fit import fit_weights, load_weights
from starfire_cli.pruning import Layer, Masks, layers_of_model, select
from starfire_cli.pruning.channels.selection.sites import fixed_convolutions
from starfire_cli.pruning.ties import masks_once, parameters_of, ties_of, unify
from starfire_cli.text import counted, some
from starfire_cli.workflows.train.request import TrainRequest

_PRUNED = 0.01  # the share of zeros from which on a tensor looks pruned


@dataclass(kw_only=True)
class Start:
    """The layers that a run begins with, and what is dead in them.

    Args:
        layers: the layers to prune.
        left_out: (name, reason) of the others.
        masks: what is dead already.
        notes: lines for the user.
    """

    layers: list[Layer]
    left_out: list[tuple[str, str]]
    masks: Masks | None = None
    notes: list[str] = field(default_factory=list)


def take_weights(
    net: nn.Module, request: TrainRequest, classes: int, *, resume: Checkpoint | None, initial: Checkpoint | None
) -> Start:
    """Load the weights of `resume`, else of `initial` (`--init`), into `net`, else leave it as it is.

    A classifier for another number of `classes` than `initial` has is left as initialised, and noted.

    Raises StarfireError where the checkpoint does not fit the network, BadOption for a glob that matches nothing.
    """
    found, left_out = layers_of_model(net)
    layers, exempt = select(found, only=request.only, keep_dense=request.keep_dense)
    start = Start(layers=layers, left_out=left_out + exempt)
    start.notes += [f"{key} is one tensor with {first} and is trained as such" for key, first in unify(net)]
    checkpoint = resume or initial
    if checkpoint is None:
        return start
    if resume is not None:
        checkpoint = replace(resume, state=(resume.training or {}).get("raw", resume.state))
    checkpoint, head = fit_weights(net, checkpoint, request.model, classes=classes if resume is None else None)
    if head:
        start.notes.append(f"{', '.join(head)} start fresh: the checkpoint was trained on other classes")
    _refuse_nonfinite(checkpoint)
    load_weights(net, checkpoint, but=head)
    masks = masks_once(checkpoint.masks or {}, ties_of(net.state_dict()), [layer.key for layer in found])
    if resume is not None:
        start.masks = {layer.key: masks[layer.key] for layer in found if layer.key in masks}
    else:
        start.notes += checkpoint.notes
        weights = {key: weight.detach() for key, weight in parameters_of(net).items()}
        dead = find_dead_weights(weights, masks, found, zeros=request.init_zeros == "dead", fresh=head)
        start.masks = dead.masks
        start.notes += _zeros_elsewhere(weights, found) if request.init_zeros == "dead" else ()
        start.notes += _dead_in_words(checkpoint, found, dead)
    # What came in dead stays dead, also in layers that this run's method does not touch.
    start.layers = [layer for layer in found if layer in layers or layer.key in start.masks]
    return start


def leave_fixed(start: Start, net: nn.Module, image_size: int) -> None:
    """Leave out convolutions whose outputs cannot go one by one, for methods that prune filters.

    Raises StarfireError where the network cannot be traced.
    """
    try:
        fixed = fixed_convolutions(net, (3, image_size, image_size))
    except StarfireError as error:
        raise StarfireError(
            f"which filters the method prunes depends on what is added to them, and {error}; mao:grain=filter does "
            "without"
        ) from None
    kept = start.masks or {}
    start.left_out += [(layer.name, fixed[layer.name]) for layer in start.layers if layer.name in fixed]
    start.layers = [layer for layer in start.layers if layer.name not in fixed or layer.key in kept]


def _refuse_nonfinite(checkpoint: Checkpoint) -> None:
    """Raises StarfireError for weights that no training can begin with."""
    for key, tensor in checkpoint.state.items():
        values = tensor if tensor.dtype.itemsize > 1 else tensor.float()
        if tensor.is_floating_point() and not bool(values.isfinite().all()):
            raise StarfireError(f"{checkpoint.path}: {key} holds NaN or infinity, and nothing can be trained from that")


def _zeros_elsewhere(weights: Mapping[str, Tensor], layers: list[Layer]) -> Iterator[str]:
    """A line on weights that look pruned and are in no layer that masks are kept of."""
    keys = {layer.key for layer in layers}
    counts = {
        key: zeros
        for key, tensor in weights.items()
        if key not in keys
        and tensor.ndim > 1
        and (zeros := tensor.numel() - int(nonzero(tensor).sum()))
        and _PRUNED * tensor.numel() <= zeros < tensor.numel()
    }
    if counts:
        yield (
            f"{sum(counts.values()):,} zeros of {some(list(counts))} are trained again: masks are kept of the weights "
            "of convolutions and linear layers only"
        )


def _dead_in_words(checkpoint: Checkpoint, layers: list[Layer], dead: DeadWeights) -> Iterator[str]:
    """The weights that were loaded and count as pruned, and why, as lines for the user."""
    by_mask, by_zeros = sum(dead.by_mask.values()), sum(dead.by_zeros.values())
    if by_mask or by_zeros:
        why = {
            "by its masks": by_mask,
            "because they are zero (--init-zeros free lets these train)": by_zeros,
        }
        reasons = [f"{count:,} {text}" if by_mask and by_zeros else text for text, count in why.items() if count]
        count = counted(len(dead.by_mask) + len(dead.by_zeros), "layer")
        yield (
            f"{checkpoint.path}: {by_mask + by_zeros:,} weights in {count} are dead and stay zero, "
            f"{' and '.join(reasons)}"
        )
    if dead.untrained:
        yield f"zero as a whole, so taken for never trained and free to train: {some(dead.untrained)}"
    keys = {layer.key for layer in layers}
    if lost := [key for key, mask in (checkpoint.masks or {}).items() if key not in keys and not mask.all()]:
        yield f"masks of what is no prunable layer here are not kept: {some(lost)}"
