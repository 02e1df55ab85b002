"""What does a run begin with? A checkpoint's weights or fresh ones, what is dead of them, and which layers prune."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from starfire_cli.formats.checkpoint import Checkpoint
from starfire_cli.pruning import Layer, Masks, layers_of_model, select
from starfire_cli.workflows.fitting import fitted, other_classes, refuse
from starfire_cli.workflows.request import TrainRequest


@dataclass(kw_only=True)
class Start:
    """Args:
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
    checkpoint = resume or initial
    if checkpoint is None:
        return start
    if resume is not None:
        checkpoint = replace(resume, state=(resume.training or {}).get("raw", resume.state))
    checkpoint = fitted(net, checkpoint)
    head = other_classes(net, checkpoint.state, classes) if resume is None else []
    if head:
        start.notes.append(f"{', '.join(head)} start fresh: the checkpoint was trained on other classes")
    else:
        refuse(net, checkpoint, request.model, classes if resume is None else None)
    net.load_state_dict({key: tensor for key, tensor in checkpoint.state.items() if key not in head}, strict=False)
    if resume is None:
        start.notes += checkpoint.notes
    masks = checkpoint.masks or {}
    start.masks = {layer.key: masks[layer.key] for layer in found if layer.key in masks and layer.key not in head}
    # What came in dead stays dead, also in layers that this run's method does not touch.
    start.layers = [layer for layer in found if layer in layers or layer.key in start.masks]
    return start
