"""A checkpoint opened for `prune-mask`: the layers that can be pruned, and what is dead already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import find_checkpoint
from starfire_cli.networks.dead_weights import DeadWeights, find_dead_weights
from starfire_cli.networks.prunable import Prunable, prunable
from starfire_cli.networks.restore import rebuild_model
from starfire_cli.networks.skeleton import BuiltModel
from starfire_cli.pruning import (
    CHANNEL_METHODS,
    ONESHOT_METHODS,
    TRAINING_METHODS,
    ChannelMethod,
    Layer,
    Masks,
    NetworkMethod,
    select,
)
from starfire_cli.text import counted, some
from starfire_cli.workflows.prune.channels import (
    ChannelPruning,
    ChannelsRemoved,
    channel_method,
    remove_channels,
)
from starfire_cli.workflows.prune.oneshot import recalibrate
from starfire_cli.workflows.prune.request import PruneRequest
from starfire_cli.workflows.prune.trial import Trial
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.settings import Pruning, only_trains, pruning_of
from starfire_cli.workflows.unread_options import refuse_unread


@dataclass
class PruneJob:
    """A pruning request with its opened checkpoint.

    Args:
        found: everything that could be pruned; `layers` is what the options leave of it.
        left_out: (layer, why it is not pruned).
        dead: what is dead already, in all layers that were found.
        channels: the method, where it is one that removes channels.
    """

    request: PruneRequest
    checkpoint: Checkpoint
    found: Prunable
    layers: list[Layer]
    left_out: list[tuple[str, str]]
    dead: DeadWeights
    channels: ChannelMethod | None = None

    def pruning(self, target: float | None) -> Pruning | ChannelPruning:
        """The methods at one target. Raises BadOption."""
        r = self.request
        if self.channels is not None:
            return ChannelPruning(method=self.channels, target=target, method_spec=CHANNEL_METHODS.spec(self.channels))
        assert target is not None
        request = TrainRequest(method=r.method, fc=r.fc, target=target, max_nonzero=r.max_nonzero)
        return pruning_of(request, ONESHOT_METHODS)

    def network(self, state: dict[str, Tensor]) -> BuiltModel:
        """The network with `state` in it. Raises BadOption where nothing says which network it is."""
        if self.found.network is None:
            named = self.checkpoint.meta.model.spec
            what = f"{named}, which runs that code" if named else "resnet20, timm:NAME or package.module:callable"
            wish = self.request.network_options[0]
            raise BadOption(f"{wish} needs the network of {self.checkpoint.path}: --model {what}")
        return rebuild_model(
            replace(self.checkpoint, state=state), self.found.network.spec, self.request.trial.image_size
        )

    def remove_channels(
        self, rebuilt: BuiltModel, pruning: ChannelPruning, layers: Sequence[Layer], trial: Trial | None
    ) -> ChannelsRemoved:
        """Remove channels of the network, in place. Raises BadOption, StarfireError."""
        side = rebuilt.image_size if trial is None else trial.info.image_size
        return remove_channels(
            rebuilt.net,
            {**(self.checkpoint.masks or {}), **self.dead.masks},
            pruning,
            layers,
            image=(3, side, side),
            calibrate=self.request.calibrate,
            trial=trial,
            seed=self.request.trial.seed,
        )

    def recalibrated(self, net: nn.Module, trial: Trial) -> str:
        """Refresh BatchNorm as was asked, and say so."""
        assert self.request.recalibrate is not None
        seen = recalibrate(net, trial.model(net), trial.training_batches(), self.request.recalibrate)
        return f"BatchNorm statistics measured anew on {seen} training batches"


def open_job(request: PruneRequest) -> PruneJob:
    """Open the checkpoint and choose its layers. Raises BadOption, StarfireError where that cannot be done."""
    request = _without_needless_target(request)
    request.check()
    channels = channel_method(request)
    checkpoint = files.load(find_checkpoint(request.checkpoint), weights=request.weights)
    found = prunable(checkpoint, request.model, request.trial.image_size)
    checkpoint = found.checkpoint
    if not found.layers:
        why = f"; --model SPEC says what these are: {some(found.unclear)}" if found.unclear else ""
        if not why and found.left_out:
            name, reason = found.left_out[0]
            why = f"; {name}: {reason}"
        raise StarfireError(
            f"{checkpoint.path} has no prunable layer: no convolution (4 axes) or linear weight (2 axes){why}"
        )
    layers, exempt = select(found.layers, only=request.only, keep_dense=request.keep_dense)
    if not layers and request.method != "dense":
        options = some(list(dict.fromkeys(why for _, why in exempt)))
        raise BadOption(
            f"nothing is left to prune of {checkpoint.path}: {counted(len(exempt), 'layer')} exempt ({options}); fewer "
            "patterns leave some"
        )
    dead = find_dead_weights(found.checkpoint.state, found.checkpoint.masks, found.layers)
    return PruneJob(request, found.checkpoint, found, layers, [*found.left_out, *exempt], dead, channels)


def _without_needless_target(request: PruneRequest) -> PruneRequest:
    """The request; of a method that finds out by itself how much goes, with a target that it does not look at.

    Raises BadOption where the user gave such a method a target, or named one that only trains.
    """
    name = request.method.partition(":")[0].strip()
    if name not in ONESHOT_METHODS.names():
        if name in TRAINING_METHODS.names() and name not in CHANNEL_METHODS.names():
            raise only_trains(name)
        return request
    method = ONESHOT_METHODS.build(request.method)
    refuse_unread(method, request.method, "prune-mask")
    if not isinstance(method, NetworkMethod) or method.axes().targeted:
        return request
    if request.target is not None or request.sweep is not None:
        given = "--sweep" if request.target is None else f"--target {request.target:g}"
        raise BadOption(f"{given}: --method {request.method} finds out by itself how much goes; leave it out")
    return replace(request, target=0.0)


def sparsity_of(checkpoint: Checkpoint, layers: Sequence[Layer]) -> float:
    """Dead over all weights of `layers`."""
    masks: Masks = checkpoint.masks or {}
    alive = sum(int(torch.count_nonzero(masks.get(x.key, checkpoint.state[x.key]))) for x in layers)
    return 1 - alive / max(1, sum(x.weights for x in layers))
