"""Restores networks from checkpoints: finds the model, builds it, checks that the weights fit, and loads them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from starfire_cli.data import DataInfo
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.models import Normalized, build_model
from starfire_cli.networks.fit import fit_weights, load_weights
from starfire_cli.networks.model_spec import resolve_spec, shrink_recipe
from starfire_cli.networks.normalisation import resolve_normalisation
from starfire_cli.networks.skeleton import BuiltModel, build_fresh, build_skeleton
from starfire_cli.networks.title import checkpoint_title
from starfire_cli.numbers import RGB
from starfire_cli.pruning.channels.recipe import apply_shrink


@dataclass(frozen=True, kw_only=True)
class RestoredModel:
    """A trained network, ready to use.

    Args:
        path: the checkpoint it came from.
        title: a name for people: method and target where they are known, else the file.
        digest: SHA-256 over the weights; equal digests are equal networks.
        model: from pixels in [0, 1], (N, 3, H, W), to logits; float32, in eval mode, on the device.
        mean: with which it normalises.
        std: likewise.
        image_size: of the images it was built for, in pixels.
        notes: what had to be done to the checkpoint, a sentence each.
    """

    path: Path
    title: str
    digest: str
    model: nn.Module
    mean: RGB
    std: RGB
    image_size: int
    notes: tuple[str, ...] = ()


def restore_model(
    checkpoint: Checkpoint,
    device: torch.device,
    info: DataInfo | None = None,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: RGB | None = None,
    std: RGB | None = None,
) -> RestoredModel:
    """The network of a checkpoint, normalising the images it takes.

    Args:
        checkpoint: of any format; its metadata is used where there is any.
        device: where it is wanted.
        info: the data that the network is going to see; None for images like those it was trained on.
        model: its spec; takes the place of what the metadata say.
        num_classes: without `info`, where neither metadata nor weights tell.
        image_size: pixels a side, without `info`, where the metadata do not say.
        mean: of its pixels in [0, 1] per channel; takes the place of what the metadata say.
        std: likewise.

    Raises:
        BadOption, StarfireError: something of this is neither known nor given, or the weights do not fit.
    """
    if info is None:
        info = _info_of(checkpoint, model, num_classes, image_size, mean, std)
    path, recorded = checkpoint.path, checkpoint.meta.model.num_classes
    spec = resolve_spec(checkpoint, model)
    mean, std = resolve_normalisation(checkpoint, mean, std)
    classes = len(info.classes)
    if recorded is not None and recorded != classes:
        raise StarfireError(f"{path} was made for {recorded} classes; the data {info.spec} have {classes}")
    net, checkpoint = build_loaded(checkpoint, spec, info)
    return RestoredModel(
        path=path,
        title=checkpoint_title(checkpoint),
        digest=_digest(checkpoint.state),
        model=Normalized(net.float(), mean, std).to(device).eval(),
        mean=mean,
        std=std,
        image_size=info.image_size,
        notes=checkpoint.notes,
    )


def build_loaded(checkpoint: Checkpoint, spec: str, info: DataInfo) -> tuple[nn.Module, Checkpoint]:
    """(the plain network for the images of `info`, with the weights; the checkpoint under its tensors' names).

    Raises:
        BadOption: there is no such model.
        StarfireError: the weights are not that model's, or are for another number of classes.
    """
    classes = len(info.classes)
    net = build_model(spec, num_classes=classes, image_size=info.image_size)
    apply_shrink(net, shrink_recipe(checkpoint))
    checkpoint, head = fit_weights(net, checkpoint, spec, classes=classes)
    if head:
        raise StarfireError(
            f"{checkpoint.path} was made for {len(checkpoint.state[head[0]])} classes ({head[0]}); "
            f"the data {info.spec} have {classes}"
        )
    load_weights(net, checkpoint)
    return net, checkpoint


def rebuild_model(checkpoint: Checkpoint, spec: str, image_size: int | None = None) -> BuiltModel:
    """The plain network with the weights, on the CPU, in eval mode. Raises as `build_skeleton`."""
    found = build_skeleton(checkpoint, spec, image_size)
    net = build_fresh(checkpoint, found)
    load_weights(net, found.checkpoint)
    return replace(found, net=net.eval())


def _info_of(
    checkpoint: Checkpoint,
    model: str | None,
    num_classes: int | None,
    image_size: int | None,
    mean: RGB | None,
    std: RGB | None,
) -> DataInfo:
    """The data a network was trained on, as far as its file says; otherwise as far as was given."""
    info = checkpoint.meta.data.info()
    if info is not None:
        return info
    known = build_skeleton(checkpoint, resolve_spec(checkpoint, model), image_size)
    mean, std = resolve_normalisation(checkpoint, mean, std)
    return DataInfo(
        name="unknown",
        spec="unknown",
        classes=tuple(str(i) for i in range(num_classes or known.num_classes)),
        mean=mean,
        std=std,
        image_size=known.image_size,
        train_images=0,
        val_images=0,
    )


def _digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of the names: the same in every format."""
    sha = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        sha.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return sha.hexdigest()
