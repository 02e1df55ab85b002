"""Measures accuracy after one-shot pruning at each target, and the sensitivity of single layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from starfire_cli.errors import BadOption
from starfire_cli.records.prune import PruneProgress, SweepPoint
from starfire_cli.workflows.prune.job import PruneJob, sparsity_of
from starfire_cli.workflows.prune.oneshot import prune_once
from starfire_cli.workflows.prune.trial import Trial


def sweep(job: PruneJob, targets: tuple[float, ...]) -> Iterator[PruneProgress | SweepPoint]:
    """The accuracy at each target, without training; all layers at once or one by one."""
    job.network(job.checkpoint.state)  # says so if there is none, before anything takes time
    trial = Trial(job.checkpoint, job.request.trial)
    yield from (PruneProgress(text=note) for note in trial.notes)
    yield _point(job, trial, None, 0.0, job.checkpoint.state, sparsity_of(job.checkpoint, job.found.layers))
    groups = [[layer] for layer in job.layers] if job.request.per_layer else [job.layers]
    for layers in groups:
        name = layers[0].name if job.request.per_layer else None
        for target in targets:
            try:
                state, masks, _ = prune_once(job.checkpoint, layers, job.pruning(target), job.dead)
            except BadOption as error:
                yield PruneProgress(text=f"skipped: {error}")
                continue
            pruned = replace(job.checkpoint, state=state, masks=masks)
            sparsity = sparsity_of(pruned, layers if name else job.found.layers)
            yield _point(job, trial, name, target, state, sparsity)


def _point(
    job: PruneJob, trial: Trial, layer: str | None, target: float, state: dict[str, Tensor], sparsity: float
) -> SweepPoint:
    net = job.network(state).net
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
