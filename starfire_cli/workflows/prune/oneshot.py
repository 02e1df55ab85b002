"""Prunes a checkpoint's weights once, with the pruner that training uses (docs/prune-mask.md)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.dead_weights import DeadWeights
from starfire_cli.networks.lone_images import needs_two, without_lone
from starfire_cli.networks.prunable import maybe_grouped
from starfire_cli.pruning import Layer, Masks, NetworkMethod, Pruner
from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.schedule import Era
from starfire_cli.pruning.ties import replace_tied
from starfire_cli.workflows.pruning import plan_layers
from starfire_cli.workflows.train.settings import Pruning


class _Weights(nn.Module):
    """Weights by state-dict key, in the form that a `Pruner` needs: names may be anything."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._named = {k: nn.Parameter(w.clone(), requires_grad=False) for k, w in weights.items()}

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._named.items())


def prune_once(
    checkpoint: Checkpoint, layers: Sequence[Layer], pruning: Pruning, dead: DeadWeights
) -> tuple[dict[str, Tensor], Masks, list[tuple[str, str]]]:
    """Prunes; returns (state with zeros, masks, layers left alone and why). Dead weights stay dead.

    The checkpoint's own tensors are not changed; masks of layers that are not among `layers` are kept.

    Args:
        checkpoint: whose weights these are.
        layers: which of them to prune.
        pruning: how.
        dead: what is dead already, in all layers.

    Raises:
        BadOption: a layer would lose everything.
        StarfireError: a layer holds NaN or inf.
    """
    known = {**(checkpoint.masks or {}), **dead.masks}
    emptied = {key for key, mask in known.items() if not mask.any()}
    chosen = [layer for layer in layers if layer.key not in emptied]  # of which there is nothing left to prune
    weights = _Weights({layer.key: checkpoint.state[layer.key] for layer in chosen})
    pruner = Pruner(
        weights,
        chosen,
        conv=pruning.conv,
        linear=pruning.linear,
        target=pruning.target,
        era=Era(first_step=0, last_step=1),
        masks=known,
    )
    plan_layers(pruner, pruning, {})  # says so if nothing would be left of a layer
    pruner.refresh(1.0)
    pruner.verify()
    state = replace_tied(checkpoint.state, {k: p.detach() for k, p in weights.named_parameters()})
    reason = f"--method {pruning.method_spec} --fc {pruning.fc_spec} leave it alone"
    alone = [(layer.name, reason) for layer in pruner.left_alone]
    alone += [(layer.name, "all of it was dead already") for layer in layers if layer.key in emptied]
    return state, {**known, **pruner.masks}, alone


def refuse_ambiguous(layers: Sequence[Layer], pruning: Pruning) -> None:
    """Raises BadOption if whole kernels of a possibly depthwise convolution would be pruned."""
    doubtful = []
    for layer in maybe_grouped(layers):
        if isinstance(pruning.conv, NetworkMethod):
            continue  # single weights compete, whatever the groups are
        budget = pruning.conv.budget(layer, Goal(target=pruning.target))
        if layer.shape[1] == 1 and any(cut.unit and cut.count for cut in budget or ()):
            doubtful.append(layer.name)
    if doubtful:
        more = f" (and {len(doubtful) - 1} more)" if len(doubtful) > 1 else ""
        raise BadOption(
            f"{doubtful[0]}{more} has the shape of a depthwise convolution, which {pruning.method_spec} treats "
            f"otherwise; --model SPEC says what it is, --keep-dense '{doubtful[0]}' leaves it out"
        )


@torch.no_grad()
def recalibrate(net: nn.Module, model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], count: int) -> int:
    """Re-estimates BatchNorm's means and variances over `count` batches. Returns the number of batches used.

    Args:
        net: whose BatchNorm layers are refreshed; left in eval mode.
        model: `net` with what it needs in front of it, called on each batch.
        batches: images in [0, 1] and labels; one image alone goes along with a neighbour.
        count: at most so many.

    Raises StarfireError, and leaves `net` as it was, where there is but one image and that is too few.
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    model.eval()
    groups = without_lone(images for images, _ in batches)
    first = next(groups)
    if len(first) == 1 and (name := needs_two(net, first.shape[-1])):
        raise StarfireError(
            f"--recalibrate: there is one training image, and BatchNorm ({name}) sees 1 x 1 maps and needs two"
        )
    momenta = [norm.momentum for norm in norms]
    seen = 0
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    try:
        for images in itertools.chain([first], groups):
            model(images)
            seen += 1
            if seen == count:
                break
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    return seen
