"""From a checkpoint alone to its network: for whoever has no data at hand, only what the file says about itself."""

from __future__ import annotations

import torch

from starfire_cli.data import DataInfo
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint import Checkpoint
from starfire_cli.workflows.network import Channels, Network, build_network


def as_trained(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
) -> Network:
    """The network of a checkpoint, for images like those it was trained on.

    Args:
        checkpoint: of any format.
        device: where it is wanted.
        model: its spec, where the metadata have none.
        num_classes: likewise.
        mean: of its pixels in [0, 1] per channel, likewise.
        std: likewise.

    Raises:
        StarfireError: something of this is neither known nor given, or the weights do not fit.
    """
    own, data = checkpoint.meta.get("model") or {}, checkpoint.meta.get("data") or {}
    try:
        info = DataInfo.from_meta(data)
    except (KeyError, TypeError, ValueError):
        classes = num_classes or own.get("num_classes")
        missing = {
            "model": model or own.get("spec"),
            "num_classes": classes,
            "mean": mean or data.get("mean"),
            "std": std or data.get("std"),
        }
        unsaid = [name for name, value in missing.items() if value is None]
        if unsaid:
            raise StarfireError(
                f"{checkpoint.path} does not say its {', '.join(unsaid)}; checkpoints of starfire train do, "
                "and starfire_cli.load_model takes them as arguments"
            ) from None
        info = DataInfo(
            name="unknown",
            spec="unknown",
            classes=tuple(str(i) for i in range(int(classes or 0))),
            mean=mean or (0.0, 0.0, 0.0),
            std=std or (1.0, 1.0, 1.0),
            image_size=int(own.get("image_size") or 224),
            train_images=0,
            val_images=0,
        )
    return build_network(checkpoint, info, device, model=model, mean=mean, std=std)
