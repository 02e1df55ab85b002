"""How a checkpoint becomes a network that takes pixels in [0, 1], and what is said when it cannot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from starfire_cli.data import DataInfo
from starfire_cli.errors import BadOption, StarfireError, option
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.labels import method_and_share, title
from starfire_cli.models import Normalized, build_model
from starfire_cli.networks.fitting import fitted, loadable, other_classes, refuse
from starfire_cli.networks.rebuild import recipe_of, said_of_model, spec_of
from starfire_cli.pruning.channels.recipe import apply_shrink


@dataclass(frozen=True, kw_only=True)
class Network:
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
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    notes: tuple[str, ...] = ()


Channels = tuple[float, float, float]
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AS_THEY_ARE = (0, 0, 0), (1, 1, 1)


def build_network(
    checkpoint: Checkpoint,
    info: DataInfo,
    device: torch.device,
    *,
    model: str | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
) -> Network:
    """The network of a checkpoint for the images of `info`.

    Args:
        checkpoint: of any format; its metadata is used where there is any.
        info: the data that the network is going to see.
        device: where it is wanted.
        model: takes the place of what the metadata says.
        mean: likewise.
        std: likewise.

    Raises:
        BadOption, StarfireError: no model or normalisation known, other classes, weights that do not fit.
    """
    path, own = checkpoint.path, said_of_model(checkpoint)
    spec = spec_of(checkpoint, model)
    mean, std = _normalisation(checkpoint, mean, std)
    classes = len(info.classes)
    if "num_classes" in own and own["num_classes"] != classes:
        raise StarfireError(f"{path} was made for {own['num_classes']} classes; the data {info.spec} have {classes}")
    net = build_model(spec, num_classes=classes, image_size=info.image_size)
    apply_shrink(net, recipe_of(checkpoint))
    checkpoint = fitted(net, checkpoint)
    if head := other_classes(net, checkpoint.state, classes):
        raise StarfireError(
            f"{path} was made for {len(checkpoint.state[head[0]])} classes ({head[0]}); "
            f"the data {info.spec} have {classes}"
        )
    refuse(net, checkpoint, spec, classes)
    net.load_state_dict(loadable(net, checkpoint).state, strict=False)
    return Network(
        path=path,
        title=title_of(checkpoint),
        digest=digest_of(checkpoint.state),
        model=Normalized(net.float(), mean, std).to(device).eval(),
        mean=mean,
        std=std,
        image_size=info.image_size,
        notes=checkpoint.notes,
    )


def title_of(checkpoint: Checkpoint) -> str:
    """`window 0.6`, `dense`, or the name of the file where nothing is known."""
    named = method_of(checkpoint)
    return checkpoint.path.name if named is None else title(*named)


def method_of(checkpoint: Checkpoint) -> tuple[str, float | None] | None:
    """Method and share by which a network is called (see `method_and_share`); None where nothing is known."""
    pruning = checkpoint.meta.get("pruning") or {}
    method, target = pruning.get("method"), pruning.get("target")
    if not isinstance(method, str):
        return None
    masks = (checkpoint.masks or {}).values()
    dead = sum(mask.numel() - int(mask.sum()) for mask in masks)
    return method_and_share(
        method,
        str(pruning.get("fc")),
        target if isinstance(target, int | float) else None,
        sparsity=dead / max(1, sum(mask.numel() for mask in masks)),
        shrunk=bool(said_of_model(checkpoint).get("shrink")),
    )


def digest_of(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of the names: the same in every format."""
    sha = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        sha.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return sha.hexdigest()


def not_normalised(checkpoint: Checkpoint, mean: Channels | None, std: Channels | None) -> BadOption:
    """The error for a file that does not say how its images were normalised, where mean or std is not given either."""
    missing = " and ".join(option(name) for name, value in (("mean", mean), ("std", std)) if value is None)
    imagenet, none = (f"{option('mean', m)} {option('std', s)}" for m, s in (_IMAGENET, _AS_THEY_ARE))
    return BadOption(
        f"{checkpoint.path} does not say how its images were normalised; give {missing} "
        f"(ImageNet: {imagenet}; none: {none})"
    )


def _normalisation(checkpoint: Checkpoint, mean: Channels | None, std: Channels | None) -> tuple[Channels, Channels]:
    known = checkpoint.meta.get("data") or {}
    try:
        mean = mean or tuple(float(v) for v in known["mean"])  # type: ignore[assignment]
        std = std or tuple(float(v) for v in known["std"])  # type: ignore[assignment]
    except (KeyError, TypeError, ValueError):
        raise not_normalised(checkpoint, mean, std) from None
    assert mean is not None and std is not None
    return mean, std
