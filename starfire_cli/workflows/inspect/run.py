"""Measures a checkpoint's sparsity, from its masks, or from its zeros where it has none."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.packed.estimate import bounds_of, estimate, packed_bytes
from starfire_cli.formats.run import find_checkpoint
from starfire_cli.networks.dead_weights import nonzero
from starfire_cli.networks.prunable import prunable
from starfire_cli.networks.skeleton import BuiltModel, build_fresh
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.masks import digest
from starfire_cli.pruning.stats import layer_stats
from starfire_cli.pruning.structure import structure_of
from starfire_cli.pruning.ties import distinct, masks_apart, parameters_of, ties_of
from starfire_cli.records.inspect import Inspection, LayerFinding

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def open_checkpoint(path: Path | None, weights: str | None = None) -> Checkpoint:
    """Reads the checkpoint, also if its masks and weights contradict each other. Raises StarfireError.

    Args:
        path: a file, a folder, or None for the newest run.
        weights: of a file with several networks which; see `formats.checkpoint.file.load`.
    """
    return load(find_checkpoint(path), strict=False, weights=weights)


def inspect(checkpoint: Checkpoint, *, model: str | None = None, image: tuple[int, int] | None = None) -> Inspection:
    """Inspects a checkpoint.

    Args:
        checkpoint: of any format (see `open_checkpoint`).
        model: spec of the network; None: what the metadata say, if anything. Without one, shapes decide.
        image: (channels, pixels a side) for which multiply-accumulates are counted; None: as the network expects.

    Raises:
        BadOption, StarfireError: there is no such model, or the weights are not its.
    """
    return inspect_fitted(checkpoint, model=model, image=image)[0]


def inspect_fitted(
    checkpoint: Checkpoint, *, model: str | None = None, image: tuple[int, int] | None = None
) -> tuple[Inspection, Checkpoint]:
    """As `inspect`; also returns the checkpoint with its tensors under the keys that the findings name."""
    found = prunable(checkpoint, model, image[1] if image else None)
    own, agree = checkpoint.masks, not masks_apart(checkpoint.masks or {}, ties_of(checkpoint.state))
    checkpoint, layers, rebuilt = found.checkpoint, found.layers, found.network
    notes = [*checkpoint.notes, *found.notes]
    masks = checkpoint.masks or {}
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        findings = list(pool.map(lambda layer: _finding(layer, checkpoint.state[layer.key], masks), layers))
    shape = None
    if rebuilt is not None:
        channels, side = image or (3, rebuilt.image_size)
        findings, shape = _with_macs(checkpoint, findings, rebuilt, (channels, side), notes)
    dense = sum(t.nbytes for t in distinct(checkpoint.state).values())
    bounds = {finding.key: finding.bytes_bound for finding in findings}
    ties = ties_of(checkpoint.state)
    counted = {ties.get(key, key) for key in bounds}
    others = {key: tensor for key, tensor in distinct(checkpoint.state).items() if key not in counted}
    bounds |= bounds_of(others, masks)
    other_masks = sorted(set(masks) - {layer.key for layer in layers})
    if other_masks:
        notes.append(f"masks of what is no prunable layer are not counted: {', '.join(other_masks[:3])}")
    inspection = Inspection(
        path=checkpoint.path,
        format=checkpoint.format,
        layers=tuple(findings),
        left_out=found.left_out,
        notes=tuple(notes),
        parameters=_parameters(checkpoint, rebuilt),
        masks_present=own is not None,
        digest=digest(own) if own is not None else None,
        digest_matches=checkpoint.digest_matches,
        masks_agree=agree,
        meta=checkpoint.meta,
        model=rebuilt.spec if rebuilt else None,
        input=shape,
        bytes_file=checkpoint.path.stat().st_size if checkpoint.path.exists() else 0,
        bytes_dense=dense,
        bytes_packed=packed_bytes(checkpoint.state, masks, checkpoint.meta.values, bounds),
        bytes_bound=round(sum(bounds.values())),
    )
    return inspection, checkpoint


def _finding(layer: Layer, weight: Tensor, masks: Mapping[str, Tensor]) -> LayerFinding:
    live = nonzero(weight)
    mask = masks.get(layer.key)
    alive = live if mask is None else mask
    stats = layer_stats(layer, alive)
    revived = idle = 0
    if mask is not None:
        both = int(torch.count_nonzero(live & mask))
        revived = int(torch.count_nonzero(live)) - both
        idle = layer.weights - stats.zeros - both
    bound, nonfinite = estimate(layer.key, weight, mask)
    return LayerFinding(
        name=layer.name,
        key=layer.key,
        kind=layer.kind,
        shape=layer.shape,
        groups=layer.groups,
        zeros=stats.zeros,
        dead_kernels=stats.dead_kernels,
        dead_outputs=stats.dead_outputs,
        dead_inputs=stats.dead_inputs,
        per_window=stats.per_window,
        structure=structure_of(layer, alive, stats),
        masked=mask is not None,
        revived=revived,
        idle=idle,
        nonfinite=nonfinite,
        bytes_bound=bound,
    )


def _with_macs(
    checkpoint: Checkpoint,
    findings: list[LayerFinding],
    rebuilt: BuiltModel,
    image: tuple[int, int],
    notes: list[str],
) -> tuple[list[LayerFinding], tuple[int, int, int] | None]:
    """The findings with multiply-accumulates, and their input size; unchanged where the model cannot run."""
    from starfire_cli.models import count_macs  # torchvision comes with it, which most checkpoints do without

    channels, side = image
    # Counting on the meta device makes torch load its compiler, which takes longer than to run the network once.
    net = rebuilt.net if "torch._dynamo" in sys.modules else build_fresh(checkpoint, rebuilt)
    try:
        macs = count_macs(net, side, channels=channels)
    except Exception as error:  # noqa: BLE001 - a model may raise anything for an input it does not take
        reason = " ".join(str(error).split())[:160]
        notes.append(f"multiply-accumulates are not known: the model does not take {channels}x{side}x{side}: {reason}")
        return findings, None
    ties = ties_of(parameters_of(rebuilt.net))
    names = {finding.key: [finding.name] for finding in findings}
    for key, first in ties.items():  # a layer is run under each of its names
        owner = next((k for k in (key, first, *ties) if k in names and ties.get(k, k) == first), None)
        if owner is not None:
            names[owner] += [name.removesuffix(".weight") for name in (first, key)]
    filled = []
    for finding in findings:
        dense = sum(macs.get(name, 0) for name in set(names[finding.key]))
        left = dense * (finding.weights - finding.zeros) // finding.weights
        filled.append(replace(finding, macs=dense, macs_left=left))
    return filled, (channels, side, side)


def _parameters(checkpoint: Checkpoint, rebuilt: BuiltModel | None) -> int:
    """The model's number of parameters; without one, of floating-point tensors but BatchNorm's statistics."""
    if rebuilt is not None:
        own = parameters_of(rebuilt.net)
        return sum(t.numel() for t in distinct({k: t for k, t in checkpoint.state.items() if k in own}).values())
    return sum(
        t.numel()
        for key, t in distinct(checkpoint.state).items()
        if t.is_floating_point() and not key.endswith(_BUFFERS)
    )
