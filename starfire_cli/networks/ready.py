"""From a checkpoint alone to its network: for whoever has no data at hand, only what the file says about itself."""

from __future__ import annotations

import torch

from starfire_cli.data import DataInfo
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.network import Channels, Network, build_network, not_normalised
from starfire_cli.networks.rebuild import skeleton, spec_of


def as_trained(
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
) -> Network:
    """The network of a checkpoint, for images like those it was trained on.

    Args:
        checkpoint: of any format.
        device: where it is wanted.
        model: its spec, where the metadata have none.
        num_classes: where the weights do not tell.
        image_size: pixels a side, where the metadata do not say.
        mean: of its pixels in [0, 1] per channel, likewise.
        std: likewise.

    Raises:
        BadOption, StarfireError: something of this is neither known nor given, or the weights do not fit.
    """
    data = checkpoint.meta.get("data") or {}
    try:
        info = DataInfo.from_meta(data)
    except (KeyError, TypeError, ValueError):
        spec = spec_of(checkpoint, model)
        known = skeleton(checkpoint, spec, image_size)
        classes = num_classes or known.num_classes
        known_mean, known_std = (given or data.get(name) for name, given in (("mean", mean), ("std", std)))
        if known_mean is None or known_std is None:
            raise not_normalised(checkpoint, known_mean, known_std) from None
        info = DataInfo(
            name="unknown",
            spec="unknown",
            classes=tuple(str(i) for i in range(classes)),
            mean=mean or (0.0, 0.0, 0.0),
            std=std or (1.0, 1.0, 1.0),
            image_size=known.image_size,
            train_images=0,
            val_images=0,
        )
    return build_network(checkpoint, info, device, model=model, mean=mean, std=std)
