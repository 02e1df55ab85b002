"""Runs `prune-mask`: writes a checkpoint pruned once, or measures accuracy over targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starfire_cli import runtime
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.meta import PruningMeta, new_meta
from starfire_cli.formats.checkpoint.meta_reader import read_meta
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.overwriting import files_of, refuse_overwriting
from starfire_cli.networks.model_spec import shrink_recipe
from starfire_cli.pruning.channels.elimination import EliminationReport, eliminate
from starfire_cli.pruning.channels.recipe import compose_recipes
from starfire_cli.pruning.ties import apply_once
from starfire_cli.records.prune import Pruned, PruneProgress, SweepPoint
from starfire_cli.text import counted
from starfire_cli.workflows.init_defaults import fine_tuning
from starfire_cli.workflows.inspect.run import inspect
from starfire_cli.workflows.prune.channels import ChannelPruning
from starfire_cli.workflows.prune.job import PruneJob, open_job, sparsity_of
from starfire_cli.workflows.prune.oneshot import prune_once, refuse_ambiguous
from starfire_cli.workflows.prune.request import PruneRequest
from starfire_cli.workflows.prune.shrink import shrink_network
from starfire_cli.workflows.prune.sweep import sweep
from starfire_cli.workflows.prune.trial import Trial
from starfire_cli.workflows.train.settings import Pruning


def prune_mask(request: PruneRequest) -> Iterator[PruneProgress | SweepPoint | Pruned]:
    """Prunes and writes, or measures a sweep; yields lines of progress, then points of the curve or the result.

    Raises:
        BadOption, StarfireError: one line: what cannot be done, and what would work. Nothing is half-written.
    """
    job = open_job(request)
    yield from (PruneProgress(text=note) for note in (*job.checkpoint.notes, *job.found.notes))
    if request.sweep is not None:
        yield from sweep(job, request.sweep)
    else:
        yield from _prune(job)


def _prune(job: PruneJob) -> Iterator[PruneProgress | Pruned]:
    request, checkpoint = job.request, job.checkpoint
    pruning = job.pruning(request.target)
    out = _out_path(request, checkpoint.path, pruning)
    state, masks, alone = checkpoint.state, dict[str, Tensor](), list[tuple[str, str]]()
    if isinstance(pruning, Pruning):
        if job.found.network is None:
            refuse_ambiguous(job.layers, pruning)
        state, masks, alone = prune_once(checkpoint, job.layers, pruning, job.dead)
    model, data = _model_and_data(job)
    did = _zeros_note(job)
    trial = before = after = shrunk = report = None
    if request.network_options:
        rebuilt = job.network(state)
        net, side = rebuilt.net, rebuilt.image_size
        trial = Trial(checkpoint, request.trial) if request.wants_data else None
        if trial is not None:
            side = trial.info.image_size
            data = trial.as_meta()
            yield from (PruneProgress(text=note) for note in trial.notes)
            before = trial.measure(job.network(checkpoint.state).net)
            yield PruneProgress(text=f"before: top-1 {before.top1:.2%} on {before.images:,} images of {before.data}")
        if isinstance(pruning, ChannelPruning):
            if request.calibrate is not None:
                yield PruneProgress(text=f"{pruning.method_spec} looks at {request.calibrate:,} training images")
            removed = job.remove_channels(rebuilt, pruning, job.layers, trial)
            masks, alone = removed.masks, removed.left
            did += removed.did
        if request.recalibrate:
            assert trial is not None
            did.append(job.recalibrated(net, trial))
        if request.eliminate:
            report = eliminate(net.cpu(), masks, example=torch.zeros(1, 3, side, side))
            masks = report.masks
            did += _eliminated(report)
        if request.shrink:
            real = trial.normalised_images() if trial is not None else None
            device = runtime.pick_device(request.trial.device)
            net, masks, recipe, shrunk = shrink_network(net.cpu(), masks, (3, side, side), device, real)
            model["shrink"] = compose_recipes(shrink_recipe(checkpoint), recipe)
        after = trial.measure(net) if trial is not None else None
        model |= {"spec": rebuilt.spec, "num_classes": rebuilt.num_classes, "image_size": side}
        state = _cast_as_stored(net.cpu().state_dict(), checkpoint.state)
    meta = _meta(job, pruning, model, data)
    draft = inspect(
        Checkpoint(path=out, format="starfire", state=state, masks=masks, meta=read_meta(meta, out)),
        model=request.model,
    )
    metrics = {"sparsity_prunable": draft.sparsity_prunable, "sparsity_total": draft.sparsity_total}
    if after is not None:
        metrics |= {"val_top1": after.top1, "val_top5": after.top5, "val_loss": after.loss}
    files.save(out, state=state, masks=masks, meta={**meta, "metrics": metrics})
    written = files.load(out)  # also proves that what is dead is zero, as it lies on disk
    command, lacking = fine_tuning(
        written,
        spec=job.found.network.spec if job.found.network is not None else None,
        url=request.trial.data is not None,
        batch_size=trial.fitting_batch() if trial is not None else None,
    )
    yield Pruned(
        out=out,
        result=replace(draft, meta=written.meta, bytes_file=out.stat().st_size),
        sparsity_before=sparsity_of(checkpoint, job.found.layers),
        left_out=(*job.left_out, *alone),
        did=tuple(did),
        eliminated=report.weights if report else None,
        shrunk=shrunk,
        before=before,
        after=after,
        fine_tuning=tuple(command),
        lacking=tuple(lacking),
    )


def _out_path(request: PruneRequest, source: Path, pruning: Pruning | ChannelPruning) -> Path:
    """The output path: as given, or a name beside the source with method and target."""
    target = _asked(pruning)
    share = "" if target is None else f"-{target:g}"
    name = f"{source.name.partition('.')[0]}-{pruning.method_spec.partition(':')[0]}{share}.pt"
    out = request.out or source.with_name(name)
    if out.is_dir():
        out = out / name
    if not out.parent.is_dir():
        raise StarfireError(f"cannot write {out}: there is no folder {out.parent}")
    refuse_overwriting(out, files_of(source))
    return out


def _asked(pruning: Pruning | ChannelPruning) -> float | None:
    """The target; None where the method finds out by itself how much goes."""
    return pruning.target if not isinstance(pruning, Pruning) or pruning.targeted else None


def _model_and_data(job: PruneJob) -> tuple[dict[str, Any], dict[str, Any]]:
    """The new checkpoint's metadata: model and data as before, the pruning of this call."""
    old, network = job.checkpoint.meta, job.found.network
    model = dict(old.model.values)
    if network is not None:
        model |= {"spec": network.spec, "num_classes": network.num_classes, "image_size": network.image_size}
    return model, dict(old.data.values)


def _meta(
    job: PruneJob, pruning: Pruning | ChannelPruning, model: dict[str, Any], data: dict[str, Any]
) -> dict[str, Any]:
    """The metadata of the new checkpoint, as plain values."""
    return new_meta(
        model=model,
        data=data,
        pruning=PruningMeta(method=pruning.method_spec, fc=pruning.fc_spec, target=_asked(pruning)),
        ramp=None,
        keep_dense=job.request.keep_dense,
        only=job.request.only,
        origin={"source": {"path": str(job.checkpoint.path), "format": job.checkpoint.format}},
        hardware=runtime.hardware(runtime.pick_device(job.request.trial.device)),
        command=job.request.command,
        seed=job.request.trial.seed,
    )


def _eliminated(report: EliminationReport) -> list[str]:
    if report.declined:
        return [f"nothing was eliminated: {report.declined}"]
    said = []
    for layer in report.layers:
        if layer.weights:
            said.append(
                f"eliminated in {layer.layer}: {layer.weights:,} weights of {len(layer.columns)} inputs that no image "
                f"changes ({layer.folded} of them had a constant, now in the bias)"
            )
        said += [f"not eliminated in {layer.layer}: {n} inputs ({reason})" for reason, n in layer.kept.items()]
    return said


def _zeros_note(job: PruneJob) -> list[str]:
    """A note on masks taken from zeros, where the file held no masks."""
    zeros = sum(job.dead.by_zeros.values())
    if not zeros:
        return []
    lacking = "no masks" if not job.checkpoint.masks else f"no mask of {counted(len(job.dead.by_zeros), 'layer')}"
    return [f"the file had {lacking}; {zeros:,} weights that were zero already count as pruned"]


def _cast_as_stored(state: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's state in the checkpoint's element types."""
    return apply_once(lambda key, tensor: tensor.to(old[key].dtype) if key in old else tensor, state)
