"""Saves a model that somebody else's loop has pruned as a checkpoint like those of `starfire train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli import runtime
from starfire_cli.errors import BadOption, Mismatch, StarfireError
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.meta import PruningMeta, new_meta
from starfire_cli.formats.checkpoint.meta_reader import read_meta
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.model_spec import runs_code
from starfire_cli.networks.skeleton import build_skeleton
from starfire_cli.pruning.ties import apply_once
from starfire_cli.text import some
from starfire_cli.workflows.attach.attached import AttachedPruner
from starfire_cli.workflows.attach.described import Described, checked, data_record, warn_of_classes
from starfire_cli.workflows.attach.notices import warn, warn_of_dead_layers
from starfire_cli.workflows.attach.parts import plain_network
from starfire_cli.workflows.attach.shards import ShardedPruner, gathered


def save(path: str | PathLike[str], pruner: AttachedPruner, described: Described) -> Path:
    """See `starfire.save`. Raises StarfireError, and Mismatch where a dead weight is not zero."""
    if Path(path).suffix.lower() in (".safetensors", ".onnx", ".npz"):
        raise BadOption(f"path={str(path)!r}: this writes a .pt file, of which compress makes a .safetensors")
    found, file = _with_model(as_checkpoint(pruner, described), described), Path(path)
    warn_early(pruner)
    _warn(pruner, found)
    warn_of_classes(described, pruner.network)
    training = {}
    if pruner.average is not None:
        # As in a run: `model` is what one measures, and what was trained lies beside it.
        training["raw"] = apply_once(lambda _, tensor: tensor.detach().cpu(), _state(pruner.network))
    sharded = isinstance(pruner.core, ShardedPruner)  # then every process is here, and the first of them writes
    if not sharded or torch.distributed.get_rank() == 0:
        files.save(file, state=found.state, masks=found.masks, meta=found.meta.values, training=training)
    if sharded:
        torch.distributed.barrier()
    return file


def warn_early(pruner: AttachedPruner) -> None:
    """Warn where pruning is not over, of which the weights say nothing."""
    first, last = pruner.era
    if pruner.step >= last:
        return
    dead = f"{pruner.sparsity:.2%} of the prunable weights are dead so far"
    if pruner.step == 0:
        dead += "; no step was seen, as where another optimizer trains the model than starfire.attach was given"
    warn(f"this is step {pruner.step} and the era is {first}:{last}: {dead}")


def _warn(pruner: AttachedPruner, found: Checkpoint) -> None:
    """Warn of other things that a reader of the file would not expect."""
    if pruner.average_is_stale:
        warn(
            f"the average that starfire.attach was given as ema was never updated in {pruner.step} steps, and is what "
            "the file has as its model; update it after each step, as with ema.update_parameters(model)",
        )
    warn_of_dead_layers("", found.masks or {})
    if odd := [key for key, value in found.state.items() if not bool(value.isfinite().all())]:
        warn(f"{some(odd)}: weights are NaN or infinite")


def _with_model(found: Checkpoint, described: Described) -> Checkpoint:
    """The checkpoint with the number of classes that its weights tell. Raises BadOption for a model of other tensors.

    Code of the user's is not run to find out.
    """
    if described.model is None or runs_code(described.model):
        return found
    try:
        built = build_skeleton(found, described.model, described.image_size)
    except StarfireError as error:
        raise BadOption(f"{error}; give the model that these weights are of, or leave model out") from None
    meta = {**found.meta.values, "model": {**found.meta.values["model"], "num_classes": built.num_classes}}
    return replace(found, meta=read_meta(meta, found.path))


def as_checkpoint(pruner: AttachedPruner, described: Described | None = None) -> Checkpoint:
    """The checkpoint that `save` would write, in memory: of a moving average, if there is one. Raises as that."""
    described = described or Described()
    if not isinstance(pruner, AttachedPruner):
        raise BadOption(f"pruner is a {type(pruner).__name__}; what starfire.attach returned works")
    pruner.settle()
    pruner.verify()
    described = checked(described)
    path = Path(type(pruner.network).__name__)
    return Checkpoint(
        path=path,
        format=files.FORMAT,
        state=apply_once(
            lambda _, tensor: tensor.detach().cpu(),
            _state(pruner.network if pruner.average is None else pruner.average),
        ),
        masks={key: mask.cpu() for key, mask in pruner.masks.items()},
        meta=read_meta(_meta(pruner, described), path),
    )


def module_checkpoint(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Checkpoint:
    """A module as a checkpoint in memory. Raises BadOption for masks that do not fit it."""
    network = plain_network(model)
    state = _state(network)
    for key, mask in (masks or {}).items():
        if key not in state or not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
            raise BadOption(f"masks: {key} is no bool tensor of a weight of the model")
        if mask.shape != state[key].shape:
            raise BadOption(f"masks: {key} has shape {tuple(mask.shape)}, its weight {tuple(state[key].shape)}")
        if bool(state[key][~mask.to(state[key].device)].any()):
            raise Mismatch(f"{key}: dead weights are not zero")
    state = apply_once(lambda _, tensor: tensor.detach().cpu(), state)
    found = {key: mask.cpu() for key, mask in (masks or {}).items()}
    return Checkpoint(path=Path(type(network).__name__), format=files.FORMAT, state=state, masks=found or None)


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {key: gathered(value) for key, value in network.state_dict().items() if isinstance(value, Tensor)}


def _meta(pruner: AttachedPruner, described: Described) -> dict[str, Any]:
    found, era, per_epoch = pruner.summary(), pruner.core.era, pruner.options["steps_per_epoch"]
    weights = next(iter(pruner.core.weights.values()), None)
    classes = len(described.classes) if described.classes is not None else None
    model = {
        "spec": described.model,
        "num_classes": described.num_classes or classes,
        "image_size": described.image_size,
    }
    return new_meta(
        model={name: value for name, value in model.items() if value is not None},
        data=data_record(described),
        pruning=PruningMeta(
            method=pruner.method,
            fc=pruner.fc,
            target=pruner.target,
            era=None if per_epoch is None else (era.first_step / per_epoch, era.last_step / per_epoch),
            era_steps=pruner.era,
        ),
        ramp=era.ramp,
        keep_dense=pruner.options["keep_dense"],
        only=pruner.options["only"],
        origin={
            "metrics": {
                **described.metrics,
                "step": pruner.step,
                "sparsity_prunable": found.sparsity_prunable,
                "sparsity_total": found.sparsity_total,
            }
        },
        hardware={} if weights is None else runtime.hardware(weights.device),
        command="starfire.save",
        seed=pruner.options["seed"],
    )
