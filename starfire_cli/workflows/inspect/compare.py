"""Compares two checkpoints: masks layer by layer, and the two networks' predictions on the same images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli import runtime
from starfire_cli.data import DataInfo, DataOptions, Split, open_val
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.restore import restore_model
from starfire_cli.numbers import RGB
from starfire_cli.pruning.ties import masks_once, ties_of
from starfire_cli.records.inspect import Comparison, Inspection, LayerDifference, LayerFinding, Predictions
from starfire_cli.workflows.inspect.request import InspectRequest


def compare(a: Checkpoint, b: Checkpoint, found_a: Inspection, found_b: Inspection) -> Comparison:
    """Compares the masks of two inspected checkpoints by the names of their layers."""
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


def predictions(a: Checkpoint, b: Checkpoint, request: InspectRequest) -> Predictions:
    """Runs both networks on the same validation images, each with its own preprocessing.

    Args:
        a: the first network; its record says which images these are, where it has one.
        b: the second.
        request: its data, or where they are now; its model, mean and std are of networks whose files do not say.

    Raises BadOption, StarfireError where data or model are not known, or the classes are not the networks'.
    """
    place, data = runtime.pick_device(request.device), request.data
    options = DataOptions(
        batch_size=request.batch_size, eval_batch_size=request.batch_size, device=place, workers=request.workers
    )
    shared = a.meta.data.values or b.meta.data.values
    scaled = ("image_size",) if data is not None else _SCALED
    notes: list[str] = []
    networks: list[nn.Module] = []
    parts: list[tuple[dict[str, Any], DataInfo, Split]] = []
    for name, checkpoint in (("A", a), ("B", b)):
        own = {key: value for key, value in checkpoint.meta.data.values.items() if key in scaled}
        if not parts or {**parts[0][0], **own} != parts[0][0]:
            parts.append(({**shared, **own}, *open_val({**shared, **own}, data, options)))
        _, info, _ = parts[-1]
        networks.append(_network(name, checkpoint, info, place, request.model, (request.mean, request.std), notes))
    sizes = [info.image_size for _, info, _ in parts]
    if len(set(sizes)) > 1:
        notes.append(f"each sees the images in its own size: A {sizes[0]} px, B {sizes[1]} px")
    split_a, split_b = parts[0][2], parts[-1][2]
    counts = torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        for (images, labels), for_b in _paired_batches(split_a, split_b):
            said_a, said_b = networks[0](images).argmax(1), networks[1](for_b).argmax(1)
            right_a, right_b = said_a == labels, said_b == labels
            both = (said_a != said_b, right_a, right_b, right_a & ~right_b, right_b & ~right_a)
            counts += torch.stack([part.sum() for part in both]).cpu()
    flipped, right_a_all, right_b_all, only_a, only_b = counts.tolist()
    images_seen = len(split_a)
    return Predictions(
        data=parts[0][1].spec,
        images=images_seen,
        flipped=flipped,
        top1_a=right_a_all / images_seen,
        top1_b=right_b_all / images_seen,
        right_only_in_a=only_a,
        right_only_in_b=only_b,
        notes=tuple(notes),
    )


# Of a checkpoint's record, how images are scaled for its network; which images these are must be the same for both.
_SCALED = ("image_size", "resize", "stored")


def _paired_batches(a: Split, b: Split) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
    """((images, labels) of `a`, images of `b`), batch by batch; decoded once where both are one."""
    if a is b:
        yield from ((batch, batch[0]) for batch in a.batches(0))
        return
    for batch, (images, labels) in zip(a.batches(0), b.batches(0), strict=True):
        assert torch.equal(batch[1], labels), "one list of images, scaled in two ways"
        yield batch, images


def _network(
    name: str,
    checkpoint: Checkpoint,
    info: DataInfo,
    device: torch.device,
    model: str | None,
    given: tuple[RGB | None, RGB | None],
    notes: list[str],
) -> nn.Module:
    """The network, normalising as its own file says; where that is silent, as was given, else by the data's numbers."""
    record = checkpoint.meta.data
    mean, std = record.mean or given[0] or info.mean, record.std or given[1] or info.std
    if (record.mean is None and given[0] is None) or (record.std is None and given[1] is None):
        shown = ",".join(f"{v:.3g}" for v in mean), ",".join(f"{v:.3g}" for v in std)
        notes.append(
            f"{name} does not say how it normalises images: mean {shown[0]} and std {shown[1]} are the data's "
            "(--mean and --std give others)"
        )
    return restore_model(checkpoint, device, info, model=model, mean=mean, std=std).model


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
    """The layers by all of their names: of tied weights, formats differ in the one they put first."""
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
