"""Compression methods that remove channels from a trained network, perhaps by looking at images of its data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.pruning import CHANNEL_METHODS, ChannelMethod, Layer, Masks
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
from starfire_cli.text import counted
from starfire_cli.workflows.prune.request import PruneRequest
from starfire_cli.workflows.prune.trial import Trial
from starfire_cli.workflows.unread_options import refuse_unread


@dataclass(frozen=True, kw_only=True)
class ChannelPruning:
    """A channel method and its target; None where it takes none. Linear layers are not pruned."""

    method: ChannelMethod
    target: float | None
    method_spec: str
    fc_spec: str = "dense"


@dataclass(frozen=True, kw_only=True)
class ChannelsRemoved:
    """The outcome of a channel method on a network.

    Args:
        masks: what is dead now.
        left: (layer, why its channels stayed).
        did: the outcome, a sentence each.
    """

    masks: Masks
    left: list[tuple[str, str]]
    did: list[str]


def channel_method(request: PruneRequest) -> ChannelMethod | None:
    """The method, where it is one that removes channels. Raises BadOption for options that do not go with it."""
    if not request.by_channels:
        return None
    method, spec = CHANNEL_METHODS.build(request.method), request.method
    refuse_unread(method, spec, "prune-mask")
    if request.max_nonzero is not None:
        raise BadOption(f"--max-nonzero {request.max_nonzero} caps windows, and --method {spec} prunes none")
    if request.fc not in (PruneRequest.fc, "dense"):
        raise BadOption(
            f"--fc {request.fc}: --method {spec} removes channels of convolutions and prunes no linear layer"
        )
    if method.takes_target and (request.target is None) == (request.sweep is None):
        raise BadOption(
            f"--method {spec}: give either --target T, the share of channels to remove, or --sweep START:STOP:STEP, to "
            "measure only"
        )
    if not method.takes_target:
        given = "--sweep" if request.sweep is not None else f"--target {request.target:g}" if request.target else ""
        if given:
            raise BadOption(f"{given}: --method {spec} finds out by itself how many channels go; leave it out")
    if method.looks_at_images and request.calibrate is None:
        raise BadOption(
            f"--method {spec} looks at images: --calibrate N says at how many training images, such as --calibrate 512"
        )
    if request.calibrate is not None and not method.looks_at_images:
        raise BadOption(f"--calibrate {request.calibrate} is of no use: --method {spec} looks at no images")
    return method


def remove_channels(
    net: nn.Module,
    masks: Mapping[str, Tensor],
    pruning: ChannelPruning,
    layers: Collection[Layer],
    *,
    image: tuple[int, int, int],
    calibrate: int | None,
    trial: Trial | None,
    seed: int,
) -> ChannelsRemoved:
    """Removes channels of `net`, in place: their weights become zero.

    Args:
        net: in eval mode, on the CPU.
        masks: what is dead in it.
        pruning: how.
        layers: the layers that may lose outputs; linear ones do not.
        image: (channels, height, width) that it takes.
        calibrate: how many training images to look at.
        trial: the data, where there are any.
        seed: of random draws.

    Raises BadOption, StarfireError where the method cannot do this.
    """
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise StarfireError(f"{key} holds NaN or inf; channels cannot be told by it")
    convolutions = [layer.name for layer in layers if layer.kind != "linear"]
    batches = trial.calibration_batches(calibrate) if trial is not None and calibrate is not None else []
    device = trial.device if trial is not None else None
    try:
        network = EditedNetwork(net, masks, layers=convolutions, image=image, batches=batches, device=device, seed=seed)
    except StarfireError as error:
        raise StarfireError(f"--method {pruning.method_spec} follows the network: {error}") from None
    seen = trial.normalised_images() if trial is not None else torch.rand(8, *image)
    before = _outputs(net, seen)
    pruning.method.prune(network, pruning.target or 0.0)
    network.write_to(net)
    layers_touched = [name for name, count in network.removed.items() if count]
    channels = sum(len(network.weight(name)) for name in layers_touched)
    what = (
        f"removed {sum(network.removed.values()):,} of {channels:,} channels of "
        f"{counted(len(layers_touched), 'convolution')}"
        if layers_touched
        else "no whole channel was removed"
    )
    kind = "real" if trial is not None else "random"
    did = [f"{what}; outputs change by {_change(before, _outputs(net, seen)):.1e} of the largest on {kind} images"]
    seen_images = sum(map(len, batches))
    if calibrate is not None and seen_images < calibrate:
        did.insert(0, f"there are {seen_images:,} training images, and it looked at them all")
    linear = [(layer.name, "only channels of convolutions are removed") for layer in layers if layer.kind == "linear"]
    return ChannelsRemoved(masks=network.masks, left=[*network.left, *linear], did=did)


@torch.no_grad()
def _outputs(net: nn.Module, images: Tensor) -> Tensor:
    outputs: Tensor = net(images)
    return outputs


def _change(before: Tensor, after: Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max().clamp_min(1e-30))
