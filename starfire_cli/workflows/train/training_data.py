"""The data of a run: opened as the request says, and validated as the checkpoint it goes on from was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from starfire_cli.data import Data, DataInfo, DataOptions, open_data, recognise
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.workflows.init_defaults import Defaults
from starfire_cli.workflows.train.request import TrainRequest

Decoding = Callable[[str, int, int], None] | None


def recognise_data(request: TrainRequest, defaults: Defaults | None) -> tuple[str, int | None]:
    """Name and side of the request's data (see `recognise`)."""
    try:
        return recognise("digits" if request.data is None else request.data)
    except StarfireError as error:
        if defaults is None or "data" not in defaults.filled:
            raise
        raise StarfireError(
            f"the data that {defaults.checkpoint.path} names cannot be opened ({error}); --data PATH says where they "
            "are now"
        ) from None


def open_training_data(
    request: TrainRequest,
    device: torch.device,
    ranks: Ranks,
    *,
    channels_last: bool,
    known: DataInfo | None,
    decoding: Decoding = None,
) -> Data:
    """Both splits, and the mean and std to normalise by, `--mean` and `--std` first.

    Args:
        request: filled.
        device: where batches go.
        ranks: who share each batch.
        channels_last: the batches' memory format.
        known: the checkpoint's record of its data, if the run starts from one.
        decoding: told (what, done, all) while small images are decoded once.

    Raises BadOption and StarfireError.
    """
    assert request.batch_size is not None
    if request.batch_size < ranks.count:
        raise BadOption(
            f"--batch-size {request.batch_size} is for all {ranks.count} processes together, and each needs "
            f"an image; --batch-size {ranks.count} or more works"
        )
    options = DataOptions(
        batch_size=request.batch_size,
        eval_batch_size=request.eval_batch_size,
        image_size=request.image_size,
        augment="auto" if request.augment is None else request.augment,
        seed=request.seed,
        device=device,
        workers=request.workers,
        skip_corrupt=request.skip_corrupt,
        val_fraction=request.val_fraction,
        split_seed=request.split_seed,
        limit_train=request.limit_train,
        limit_val=request.limit_val,
        channels_last=channels_last,
        rank=ranks.rank,
        ranks=ranks.count,
        progress=decoding,
    )
    data = open_data("digits" if request.data is None else request.data, options, known=known)
    if request.mean is None and request.std is None:
        return data
    own = data.info
    return replace(data, info=replace(own, mean=request.mean or own.mean, std=request.std or own.std))


def data_note(request: TrainRequest, info: DataInfo) -> str:
    """The data that the run trains on, as a line for the user."""
    chosen = "" if request.data else "; choose others with --data PATH or --data NAME (docs/data.md)"
    return (
        f"data: {info.name}, {info.train_images:,} training and {info.val_images:,} validation images of "
        f"{info.image_size} px in {len(info.classes)} classes{chosen}"
    )
