"""Measures accuracy after one-shot pruning at each target, and the sensitivity of single layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.pruning import Layer
from starfire_cli.records.prune import PruneProgress, SweepPoint
from starfire_cli.workflows.prune.channels import ChannelPruning
from starfire_cli.workflows.prune.job import PruneJob, sparsity_of
from starfire_cli.workflows.prune.oneshot import prune_once
from starfire_cli.workflows.prune.trial import Trial


def sweep(job: PruneJob, targets: tuple[float, ...]) -> Iterator[PruneProgress | SweepPoint]:
    """The accuracy at each target, without training; all layers at once or one by one."""
    job.network(job.checkpoint.state)  # says so if there is none, before anything takes time
    trial = Trial(job.checkpoint, job.request.trial)
    yield from (PruneProgress(text=note) for note in trial.notes)
    whole = job.network(job.checkpoint.state).net
    yield _point(job, trial, None, 0.0, whole, sparsity_of(job.checkpoint, job.found.layers))
    groups = [[layer] for layer in job.layers] if job.request.per_layer else [job.layers]
    for layers in groups:
        name = layers[0].name if job.request.per_layer else None
        for target in targets:
            try:
                net, pruned = _pruned(job, layers, target, trial)
            except BadOption as error:
                yield PruneProgress(text=f"skipped: {error}")
                continue
            sparsity = sparsity_of(pruned, layers if name else job.found.layers)
            yield _point(job, trial, name, target, net, sparsity)


def _pruned(job: PruneJob, layers: Sequence[Layer], target: float, trial: Trial) -> tuple[nn.Module, Checkpoint]:
    """The network at one target, and what a checkpoint of it would hold."""
    pruning = job.pruning(target)
    if isinstance(pruning, ChannelPruning):
        rebuilt = job.network(job.checkpoint.state)
        masks = job.remove_channels(rebuilt, pruning, layers, trial).masks
        return rebuilt.net, replace(job.checkpoint, state=rebuilt.net.state_dict(), masks=masks)
    state, masks, _ = prune_once(job.checkpoint, layers, pruning, job.dead)
    return job.network(state).net, replace(job.checkpoint, state=state, masks=masks)


def _point(
    job: PruneJob, trial: Trial, layer: str | None, target: float, net: nn.Module, sparsity: float
) -> SweepPoint:
    if job.request.recalibrate and target:
        job.recalibrated(net, trial)
    found = trial.measure(net)
    return SweepPoint(
        layer=layer,
        target=target,
        sparsity=sparsity,
        top1=found.top1,
        top5=found.top5,
        loss=found.loss,
        images=found.images,
    )
