"""Removes channels from the network of a run while it trains, and builds anew all that knows its parameters."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import torch

from starfire_cli.distributed import batchnorm
from starfire_cli.distributed.agreement import Agreement
from starfire_cli.models import count_macs
from starfire_cli.pruning import Layer, Pruner, layers_of_model
from starfire_cli.pruning.axes import Shrinking
from starfire_cli.pruning.channels.live import align_state, plan_removal, remove, settle_norms
from starfire_cli.pruning.channels.recipe import compose_recipes, shrink_masks
from starfire_cli.pruning.lasso import live_channels
from starfire_cli.workflows.train.fixed_masks import FixedMasks
from starfire_cli.workflows.train.live_macs import count_live_macs
from starfire_cli.workflows.train.network import Removed, TrainingNetwork
from starfire_cli.workflows.train.session import Session
from starfire_cli.workflows.train.session_setup import build_forward, build_pruner, build_sparse
from starfire_cli.workflows.train.step import with_step_graph


def remove_channels(session: Session) -> Session:
    """At the end of an epoch, before it is measured: the session on a smaller network, where the method says that dead
    channels are removed now and some can be; otherwise the session itself. All ranks come here, and cut alike.

    Called twice it does nothing more: it goes on until no channel is dead.
    """
    shrinking, at = session.pruning.shrinking, session.position
    per_epoch, era = session.optimisation.steps_per_epoch, session.pruner.era
    if shrinking is None or not shrinking.due(at.epoch + 1, era.first_step / per_epoch, era.last_step / per_epoch):
        return session
    started = perf_counter()
    if at.end_macs is None:
        at.end_macs = count_live_macs(session)
    for net in session.nets:
        batchnorm.agree(net, session.ranks)
    network, pruner = session.network, session.pruner
    while True:
        _kill_channels(session, network, pruner, shrinking)
        smaller = _smaller(session, network, pruner)
        if smaller is None:
            break
        network, pruner = smaller, _renewed(session, pruner, smaller)
    if network is not session.network:
        session = _rebuilt(session, network, pruner)
    if at.step >= era.last_step:  # masks were fixed a moment ago, and are as they are now
        session.fixed.hold()
        session.fixed.begin()
    at.seconds += perf_counter() - started
    return session


def _kill_channels(session: Session, network: TrainingNetwork, pruner: Pruner, shrinking: Shrinking) -> None:
    """Masks that are dead where channels are. BatchNorm's statistics follow, so that eval mode is as training is."""
    pruner.load(live_channels(network.net, pruner.layers, pruner.weights, pruner.masks, shrinking.threshold))
    for net in session.nets:
        settle_norms(net, pruner.masks, example=_example(session))


def _smaller(session: Session, network: TrainingNetwork, pruner: Pruner) -> TrainingNetwork | None:
    """The network without what can be removed, cut in place; None where nothing can."""
    nets, optimizer = session.nets, session.optimisation.optimizer
    removal = plan_removal(nets, pruner.masks, example=_example(session))
    if not removal.recipe:
        return None
    masks = shrink_masks(pruner.masks, removal.recipe)
    before = _sizes(network, pruner.layers)
    remove(nets, removal, optimizer)
    if network.channels_last:
        for net in nets:
            net.to(memory_format=torch.channels_last)
    align_state(optimizer)
    found, _ = layers_of_model(network.net)
    keys = {layer.key for layer in network.start.layers}
    start = replace(network.start, layers=[layer for layer in found if layer.key in keys], masks=masks)
    after = _sizes(network, [layer for layer in found if layer.key in masks])
    cut = network.removed
    return replace(
        network,
        shrink=compose_recipes(network.shrink, removal.recipe),
        macs=count_macs(network.net, session.data.info.image_size),
        start=start,
        removed=Removed(
            prunable=cut.prunable + before.prunable - after.prunable,
            parameters=cut.parameters + before.parameters - after.parameters,
        ),
    )


def _sizes(network: TrainingNetwork, layers: list[Layer]) -> Removed:
    return Removed(
        prunable=sum(layer.weights for layer in layers), parameters=sum(p.numel() for p in network.net.parameters())
    )


def _renewed(session: Session, pruner: Pruner, network: TrainingNetwork) -> Pruner:
    """A pruner of the smaller network, which goes on where the last one stood."""
    renewed = build_pruner(session.request, session.pruning, network, pruner.era)
    renewed.load_state_dict(pruner.state_dict())
    renewed.seconds = pruner.seconds
    renewed.attach(session.optimisation.optimizer, session.optimisation.averaged)
    return renewed


def _rebuilt(session: Session, network: TrainingNetwork, pruner: Pruner) -> Session:
    """The session on another network: masks, their checks, replica, compiled model and captured step are new."""
    request, ranks = session.request, session.ranks
    fixed = FixedMasks(pruner, session.optimisation.optimizer, compact_state=False)
    sparse = build_sparse(request, network, ranks)
    if request.compile:
        torch.compiler.reset()  # or it would compile for no more than a few sizes of one function
    session = replace(
        session,
        network=network,
        pruner=pruner,
        fixed=fixed,
        agreement=Agreement(ranks, pruner),
        sparse=sparse,
        forward=build_forward(request, network, sparse, len(session.data.train)),
        graph=None,
    )
    if session.replica is not None:
        from starfire_cli.distributed.replica import Replica

        sending = session.replica.sending
        sending.leave_out({}, {})
        session = session.sharing(Replica(sparse.model(network.model), network.device, sending))
    return with_step_graph(session)


def _example(session: Session) -> torch.Tensor:
    side = session.data.info.image_size
    return torch.zeros(1, 3, side, side)
