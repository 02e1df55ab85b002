"""How a checkpoint becomes a network that takes pixels in [0, 1], and what is said when it cannot."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.data import DataInfo
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint import Checkpoint
from starfire_cli.models import Normalized, build_model
from starfire_cli.pruning.recipe import apply_shrink
from starfire_cli.workflows.rebuild import loadable, recipe_of, said_of_model, spec_of, tied_as


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
    """

    path: Path
    title: str
    digest: str
    model: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int


Channels = tuple[float, float, float]


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
    _load(net, checkpoint, spec, info)
    return Network(
        path=path,
        title=title_of(path, checkpoint.meta),
        digest=digest_of(checkpoint.state),
        model=Normalized(net.float(), mean, std).to(device).eval(),
        mean=mean,
        std=std,
        image_size=info.image_size,
    )


def title_of(path: Path, meta: dict[str, Any]) -> str:
    """`window 0.6`, `dense`, or the name of the file where nothing is known."""
    pruning = meta.get("pruning") or {}
    if "method" not in pruning:
        return path.name
    dense = not pruning.get("target") or pruning["method"] == pruning.get("fc") == "dense"
    return "dense" if dense else f"{pruning['method']} {pruning['target']:g}"


def digest_of(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of the names: the same in every format."""
    sha = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        sha.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return sha.hexdigest()


def parse_channels(text: str | None, option: str) -> Channels | None:
    """`0.485,0.456,0.406`, or one number for all three channels. Raises BadOption."""
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    least = sys.float_info.min if option == "--std" else 0.0
    if len(numbers) != 3 or not all(least <= number <= 1 for number in numbers):  # not for NaN either
        what = "above 0 and up to 1, such as 0.229,0.224,0.225" if least else "from 0 to 1, such as 0.485,0.456,0.406"
        raise BadOption(f"{option} {text!r} is not three numbers (or one for all) {what}: pixels are in [0, 1]")
    red, green, blue = numbers
    return red, green, blue


def _normalisation(checkpoint: Checkpoint, mean: Channels | None, std: Channels | None) -> tuple[Channels, Channels]:
    known = checkpoint.meta.get("data") or {}
    try:
        mean = mean or tuple(float(v) for v in known["mean"])  # type: ignore[assignment]
        std = std or tuple(float(v) for v in known["std"])  # type: ignore[assignment]
    except (KeyError, TypeError, ValueError):
        missing = " and ".join(name for name, value in (("--mean", mean), ("--std", std)) if value is None)
        raise BadOption(
            f"{checkpoint.path} does not say how its images were normalised; give {missing} "
            f"(ImageNet: --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225; none: --mean 0 --std 1)"
        ) from None
    assert mean is not None and std is not None
    return mean, std


def _load(net: nn.Module, checkpoint: Checkpoint, spec: str, info: DataInfo) -> None:
    own, given = net.state_dict(), tied_as(checkpoint, net)[0].state
    missing = [k for k in own if k not in given and not k.endswith("num_batches_tracked")]
    extra = [k for k in given if k not in own]
    other = [k for k in own if k in given and own[k].shape != given[k].shape]
    if not missing and not extra and other and all(_is_head(own[k], given[k], len(info.classes)) for k in other):
        raise StarfireError(
            f"{checkpoint.path} was made for {given[other[0]].shape[0]} classes ({other[0]}); "
            f"the data {info.spec} have {len(info.classes)}"
        )
    if missing or extra or other:
        key = (missing or extra or other)[0]
        what = (
            "is missing in the file"
            if missing
            else "is not part of the model"
            if extra
            else f"is {tuple(given[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        )
        rest = len(missing) + len(extra) + len(other) - 1
        more = f", and {rest} more differ" if rest else ""
        raise StarfireError(f"{checkpoint.path} does not fit --model {spec}: {key} {what}{more}")
    net.load_state_dict(loadable(checkpoint, net).state, strict=False)


def _is_head(own: Tensor, given: Tensor, classes: int) -> bool:
    return own.ndim > 0 and own.shape[0] == classes and own.shape[1:] == given.shape[1:]
