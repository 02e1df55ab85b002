"""What does a run begin with? A checkpoint's weights or fresh ones, what is dead of them, and which layers prune."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint import Checkpoint
from starfire_cli.pruning import Layer, Masks, layers_of_model, select
from starfire_cli.pruning.ties import masks_once, ties_of, unify
from starfire_cli.workflows.rebuild import loadable
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
    start.notes += [f"{key} is one tensor with {first} and is trained as such" for key, first in unify(net)]
    checkpoint = resume or initial
    if checkpoint is None:
        return start
    if resume is not None:
        raw = (resume.training or {}).get("raw", resume.state)
        _load(net, replace(resume, state=raw), request.model)
    else:
        head = _load(net, checkpoint, request.model, classes)
        if head:
            start.notes.append(f"{', '.join(head)} start fresh: the checkpoint was trained on other classes")
    masks = masks_once(checkpoint.masks or {}, ties_of(net.state_dict()), [layer.key for layer in found])
    start.masks = {layer.key: masks[layer.key] for layer in found if layer.key in masks}
    # What came in dead stays dead, also in layers that this run's method does not touch.
    start.layers = [layer for layer in found if layer in layers or layer.key in start.masks]
    return start


def _load(net: nn.Module, checkpoint: Checkpoint, model: str | None, classes: int | None = None) -> list[str]:
    """Take weights over, except, where `classes` is given, a classifier's for others; returns what was left out."""
    own, state = net.state_dict(), loadable(checkpoint, net).state
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    head = [k for k in wrong if own[k].shape == (classes, *state[k].shape[1:])]
    if missing or extra or len(wrong) > len(head):
        first = [*missing, *extra, *(k for k in wrong if k not in head)][0]
        what = "is missing there" if missing else "is unknown to the model" if extra else "has another shape"
        count = len(missing) + len(extra) + len(wrong) - len(head)
        raise StarfireError(f"the checkpoint does not fit --model {model}: {first} {what} ({count} tensors in all)")
    net.load_state_dict({k: v for k, v in state.items() if k not in head}, strict=False)
    return head
