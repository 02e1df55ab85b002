"""The network of a run: built, loaded from a checkpoint where there is one, and moved to its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from starfire_cli.damage import reading
from starfire_cli.data import Data
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.models import Normalized, build_model, count_macs
from starfire_cli.networks.lone_images import check_batches, has_batchnorm
from starfire_cli.networks.model_spec import shrink_recipe
from starfire_cli.pruning import layers_of_model
from starfire_cli.pruning.channels.recipe import ShrinkRecipe, apply_shrink
from starfire_cli.pruning.ties import parameters_of
from starfire_cli.workflows.train.digest import content
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.start import Start, take_weights


@dataclass(frozen=True, kw_only=True)
class Removed:
    """The numbers of weights and parameters that a run has removed from the network that it began with.

    Args:
        prunable: weights of pruned layers.
        parameters: of all kinds.
    """

    prunable: int = 0
    parameters: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainingNetwork:
    """The network of a run, on its device.

    Args:
        net: takes normalised images.
        model: takes images in [0, 1]; `net` behind its normalisation.
        device: where both are.
        channels_last: their memory format.
        shrink: what `prune-mask --shrink`, or this training, has cut away of the full network.
        macs: multiply-accumulates of one image, by layer.
        pairs: whether no part of a batch may have a single image, because of BatchNorm.
        start: the layers to prune, and what is dead in them already.
        checkpoint_digest: of all that was taken from a checkpoint, for a comparison with other ranks.
        removed: how much this run has cut away.
    """

    net: nn.Module
    model: Normalized
    device: torch.device
    channels_last: bool
    shrink: ShrinkRecipe
    macs: dict[str, int]
    pairs: bool
    start: Start
    checkpoint_digest: str
    removed: Removed = Removed()

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The weights of all convolutions and linear layers that train, pruned or not, tied ones once."""
        parameters = parameters_of(self.net)
        weights = {layer.key: parameters[layer.key] for layer in layers_of_model(self.net)[0]}
        return {key: weight for key, weight in weights.items() if weight.requires_grad}


def open_network(
    request: TrainRequest,
    data: Data,
    device: torch.device,
    ranks: Ranks,
    *,
    channels_last: bool,
    resume: Checkpoint | None,
    initial: Checkpoint | None,
) -> TrainingNetwork:
    """Build the network that the filled request names, with the weights of `resume`, else of `initial` (`--init`).

    Raises StarfireError where a checkpoint does not fit, BadOption for options that do not.
    """
    assert request.model is not None
    info = data.info
    net = build_model(request.model, num_classes=len(info.classes), image_size=info.image_size)
    digest = ""
    if initial is not None and ranks.count > 1:
        digest = content([initial.state, initial.masks or {}, initial.training or {}])
    # What prune-mask --shrink made smaller stays so.
    shrink = shrink_recipe(initial) if initial is not None else {}
    apply_shrink(net, shrink)
    macs, pairs = count_macs(net, info.image_size), has_batchnorm(net)
    if not (request.sync_bn and ranks.count > 1):  # which takes the statistics of all ranks together
        images, side = len(data.train), info.image_size
        check_batches(net, side, batch=request.batch_size or 1, images=images, ranks=ranks.count)
    start = take_weights(net, request, len(info.classes), resume=resume, initial=initial)
    net.to(device)
    if request.sync_bn:
        net = _sync_norms(net, device, ranks)
    if channels_last:
        net.to(memory_format=torch.channels_last)
    return TrainingNetwork(
        net=net,
        model=Normalized(net, info.mean, info.std).to(device),
        device=device,
        channels_last=channels_last,
        shrink=shrink,
        macs=macs,
        pairs=pairs,
        start=start,
        checkpoint_digest=digest,
        removed=_removed(resume),
    )


def _removed(resume: Checkpoint | None) -> Removed:
    """The numbers that the resumed run had removed already. Raises DamagedFile."""
    if resume is None:
        return Removed()
    with reading(resume.path, "how much was removed from its network"):
        return Removed(**(resume.training or {}).get("removed", {}))


def _sync_norms(net: nn.Module, device: torch.device, ranks: Ranks) -> nn.Module:
    if device.type != "cuda":
        raise BadOption(
            f"--sync-bn is torch's SyncBatchNorm, which runs on CUDA, and this is {device}; without it the "
            "ranks' running statistics are averaged"
        )
    if ranks.count == 1:
        return net
    synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    return synced
