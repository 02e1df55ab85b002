"""Measures the change in accuracy by rounding: top-1 with exact and with rounded weights, on the same images."""

from __future__ import annotations

from starfire_cli import runtime
from starfire_cli.data import DataOptions, open_val
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.evaluate import evaluate
from starfire_cli.networks.restore import restore_model
from starfire_cli.numbers import RGB
from starfire_cli.records.compress import AccuracyChange


def accuracy_change(
    exact: Checkpoint,
    rounded: Checkpoint,
    *,
    data: str | None,
    images: int | None,
    device: str,
    model: str | None = None,
    mean: RGB | None = None,
    std: RGB | None = None,
) -> AccuracyChange:
    """Measures both on the validation images of `data` or of the checkpoint; `model` as for `build_network`.

    `mean` and `std` are of the pixels that the network was trained on, where the checkpoint does not say.

    Raises StarfireError where the data or the network cannot be had.
    """
    place = runtime.pick_device(device)
    options = DataOptions(device=place, limit_val=images)
    info, split = open_val(exact.meta.data.values, data, options)
    before, after = (
        evaluate(restore_model(c, place, info, model=model, mean=mean, std=std).model, split) for c in (exact, rounded)
    )
    assert before is not None and after is not None, "nobody asked it to stop"
    return AccuracyChange(data=info.spec, images=before.images, before=before.top1, after=after.top1)
