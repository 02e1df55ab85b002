"""What a program that uses the checkpoints calls: `starfire_cli.load` and `starfire_cli.load_model`."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def load(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a checkpoint of any format: packed, `.pt`, safetensors, or a run folder (its best).

    Raises:
        StarfireError: the file is missing, damaged, or no checkpoint; one line that says which.
    """
    from starfire_cli.formats import checkpoint, packed
    from starfire_cli.formats.run import find_checkpoint

    file = find_checkpoint(Path(path))
    return packed.load_state(file) if packed.is_packed(file) else checkpoint.load(file).state


def load_model(
    path: str | PathLike[str],
    *,
    device: str = "cpu",
    model: str | None = None,
    num_classes: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> nn.Module:
    """The network in a checkpoint, ready to use: in eval mode, from pixels to logits.

    Args:
        path: as for `load`.
        device: where it is wanted; any name that torch knows.
        model: which network it is (`resnet50`, `timm:NAME`, `package.module:callable`), if the file does not say.
        num_classes: how many logits it gives, if the file does not say.
        mean: of the pixels it was trained on, in [0, 1] per channel, if the file does not say.
        std: likewise.

    Returns:
        A module that takes pixels in [0, 1], (N, 3, H, W), and normalises them itself; `.net` is the plain network.

    Raises:
        StarfireError: as for `load`, or something is neither said nor given, or the weights do not fit.
    """
    from starfire_cli import runtime
    from starfire_cli.formats import checkpoint
    from starfire_cli.formats.run import find_checkpoint
    from starfire_cli.workflows.ready import as_trained

    file = checkpoint.load(find_checkpoint(Path(path)))
    place = runtime.pick_device(device)
    return as_trained(file, place, model=model, num_classes=num_classes, mean=mean, std=std).model
