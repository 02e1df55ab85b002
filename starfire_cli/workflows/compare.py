"""What two checkpoints have in common: masks layer by layer, and what the two networks say to the same images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from starfire_cli import runtime
from starfire_cli.data import DataInfo, DataOptions, open_val
from starfire_cli.findings import Comparison, Inspection, LayerDifference, LayerFinding, Predictions
from starfire_cli.formats.checkpoint import Checkpoint
from starfire_cli.pruning.ties import masks_once, ties_of
from starfire_cli.workflows.network import build_network


def compare(a: Checkpoint, b: Checkpoint, found_a: Inspection, found_b: Inspection) -> Comparison:
    """Masks of two inspected checkpoints, compared by the names of their layers."""
    of_b, names_a = _by_name(b, found_b), _by_name(a, found_a)
    layers, unmatched = [], []
    for layer in found_a.layers:
        other = of_b.get(layer.name)
        if other is None:
            unmatched.append((layer.name, f"only in {a.path}"))
        elif other.shape != layer.shape:
            unmatched.append((layer.name, f"shape {layer.shape} in {a.path}, {other.shape} in {b.path}"))
        else:
            layers.append(_difference(layer, other, _alive(a, layer), _alive(b, other)))
    unmatched += [(x.name, f"only in {b.path}") for x in found_b.layers if x.name not in names_a]
    return Comparison(
        a=found_a, b=found_b, layers=tuple(layers), unmatched=tuple(unmatched), same_weights=_same(a.state, b.state)
    )


def predictions(
    a: Checkpoint, b: Checkpoint, *, data: str | None, model: str | None, batch_size: int, device: str, workers: int
) -> Predictions:
    """Run both networks over the same validation images.

    Raises BadOption, StarfireError where data, model or normalisation are not known.
    """
    place = runtime.pick_device(device)
    options = DataOptions(batch_size=batch_size, eval_batch_size=batch_size, device=place, workers=workers)
    meta = a.meta if a.meta.get("data") else b.meta
    info, split = open_val(meta.get("data") or {}, data, options)
    one, two = (build_network(c, info, place, model=model, mean=info.mean, std=info.std).model.eval() for c in (a, b))
    counts = torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        for images, labels in split.batches(0):
            said_a, said_b = (net(images).argmax(1) for net in (one, two))
            right_a, right_b = said_a == labels, said_b == labels
            parts = (said_a != said_b, right_a, right_b, right_a & ~right_b, right_b & ~right_a)
            counts += torch.stack([part.sum() for part in parts]).cpu()
    flipped, right_a_all, right_b_all, only_a, only_b = counts.tolist()
    images_seen = len(split)
    return Predictions(
        data=info.spec,
        images=images_seen,
        flipped=flipped,
        top1_a=right_a_all / images_seen,
        top1_b=right_b_all / images_seen,
        right_only_in_a=only_a,
        right_only_in_b=only_b,
    )


def _network(checkpoint: Checkpoint, info: DataInfo, device: torch.device, model: str | None) -> nn.Module:
    """The network, normalising as its metadata say, or by the data's own mean where they say nothing."""
    mean, std = (None, None) if checkpoint.meta.get("data") else (info.mean, info.std)
    return build_network(checkpoint, info, device, model=model, mean=mean, std=std).model.eval()


def _difference(a: LayerFinding, b: LayerFinding, alive_a: Tensor, alive_b: Tensor) -> LayerDifference:
    both = int(torch.count_nonzero(alive_a & alive_b))
    count_a, count_b = a.weights - a.zeros, b.weights - b.zeros
    either = count_a + count_b - both
    return LayerDifference(
        name=a.name,
        shape=a.shape,
        weights=a.weights,
        sparsity_a=a.sparsity,
        sparsity_b=b.sparsity,
        iou=both / either if either else 1.0,
        revived=count_b - both,
        died=count_a - both,
    )


def _by_name(checkpoint: Checkpoint, found: Inspection) -> dict[str, LayerFinding]:
    """The layers by all of their names: of tied weights another may come first in another format."""
    by_key = {layer.key: layer for layer in found.layers}
    names = {layer.name: layer for layer in found.layers}
    for pair in ties_of(checkpoint.state).items():
        layer = by_key.get(pair[0]) or by_key.get(pair[1])
        if layer is not None:
            names |= {name: layer for key in pair if (name := key.removesuffix(".weight")) not in names}
    return names


def _alive(checkpoint: Checkpoint, layer: LayerFinding) -> Tensor:
    masks = masks_once(checkpoint.masks or {}, ties_of(checkpoint.state), [layer.key], strict=False)
    mask = masks.get(layer.key)
    return mask if mask is not None else checkpoint.state[layer.key].float() != 0


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
