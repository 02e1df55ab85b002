"""Opens data sets as batches: `open_data` for training, `open_val` for evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from starfire_cli import damage
from starfire_cli.data import statistics
from starfire_cli.data.augment import AUGMENTATIONS, Augment
from starfire_cli.data.draws import Draws
from starfire_cli.data.finding import find, refuse_unasked
from starfire_cli.data.images import decode, decode_cache, input_pipeline
from starfire_cli.data.images.input_pipeline import InputPipeline
from starfire_cli.data.images.resident import ResidentSplit
from starfire_cli.data.images.stream import StreamSplit
from starfire_cli.data.images.workers import ImageReader
from starfire_cli.data.options import Data, DataInfo, DataOptions, Split
from starfire_cli.data.shards.layout import Shards
from starfire_cli.data.source import Part, Pixels, Source, Stats
from starfire_cli.data.splitting import limited, parts, passed_over, same_classes, validation
from starfire_cli.errors import BadOption, StarfireError

STATS_SAMPLE = 512  # large images that are decoded for mean and std
WORTH_IMPORTING = 30_000  # small images; decoding so many with Pillow takes longer than importing torchvision


def open_data(spec: str, options: DataOptions, *, known: DataInfo | None = None) -> Data:
    """Open a data set for training.

    Args:
        spec: a name (`digits`), `name:PATH`, or a path that is recognised from its layout.
        options: how it is read and delivered.
        known: what a checkpoint records about the same data; validation images of the same size are scaled as there.

    Raises:
        BadOption, StarfireError: one line that says what was given, what was seen and what works.
    """
    source = find(spec, options.image_size)
    train, val = parts(source, options)
    if len(train) < options.batch_size:
        raise StarfireError(
            f"--batch-size {options.batch_size} is more than the {len(train)} training images; "
            f"--batch-size {len(train)} or less works"
        )
    pipeline = input_pipeline.choose_pipeline(train, len(train) + len(val), options)
    auto = options.augment == "auto"
    augment = AUGMENTATIONS.build(input_pipeline.auto_augment(source, train, pipeline) if auto else options.augment)
    pipeline = input_pipeline.with_validation_resize(pipeline, augment)
    train_split, train_notes = _split(train, pipeline, options, augment)
    val_pipeline = (
        pipeline
        if known is None or known.image_size != pipeline.out
        else dataclasses.replace(pipeline, resize=known.resize)
    )
    val_split, val_notes = _split(val, val_pipeline, options, None)
    mean, std = source.stats or _measure_stats(train, train_split, pipeline, options)
    info = DataInfo(
        name=source.name,
        spec=source.spec,
        classes=source.classes,
        mean=mean,
        std=std,
        image_size=pipeline.out,
        train_images=len(train_split),
        val_images=len(val_split),
        augment=AUGMENTATIONS.spec(augment),
        val_fraction=options.val_fraction if source.val is None else None,
        split_seed=options.split_seed,
        resize=val_pipeline.resize,
        stored=pipeline.stored,
        notes=(*source.notes, *passed_over(source.train, source.val), *train_notes, *val_notes),
    )
    return Data(info=info, train=train_split, val=val_split)


def open_val(meta: Mapping[str, Any], spec: str | None, options: DataOptions) -> tuple[DataInfo, Split]:
    """The validation images that a checkpoint's metadata describes, the very same ones where the data are the same.

    Args:
        meta: the `data` part of the metadata, as `DataInfo.as_meta` made it; empty where nothing is known.
        spec: other data to use, or the place where the data are now; None for where they were.
        options: batch size and device; the split and the scaling come from `meta` where it has them.

    Raises:
        BadOption, StarfireError: no data known, data not there, classes that are not the checkpoint's.
    """
    known = recorded(meta)
    if known is None:
        if spec is None:
            raise BadOption("the checkpoint does not say what data it was trained on; --data gives it")
        source = find(spec, options.image_size)
    else:
        options = dataclasses.replace(
            options,
            image_size=options.image_size or known.image_size,
            val_fraction=known.val_fraction or options.val_fraction,
            split_seed=known.split_seed,
        )
        if spec is None:
            refuse_unasked(known.spec, "the checkpoint")
        source = _reopen(known, options) if spec is None else find(spec, options.image_size)
        same_classes(known.classes, source.classes, spec or known.spec)
    # A checkpoint that held out no share means a single folder of classes as it stands.
    whole = source.val is None and known is not None and known.val_fraction is None
    val = limited(source.train, options.limit_val, "--limit-val", options.limit_seed) if whole else None
    val = val or validation(source, options)
    pipeline = _pipeline_for(val, known if spec is None else None, options)
    split, notes = _split(val, pipeline, options, None)
    mean, std = (known.mean, known.std) if known else source.stats or _measure_stats(val, split, pipeline, options)
    info = DataInfo(
        name=source.name,
        spec=source.spec,
        classes=source.classes,
        mean=mean,
        std=std,
        image_size=pipeline.out,
        train_images=0,
        val_images=len(split),
        val_fraction=options.val_fraction if source.val is None and not whole else None,
        split_seed=options.split_seed,
        resize=pipeline.resize,
        stored=pipeline.stored,
        notes=(*source.notes, *passed_over(val), *notes),
    )
    return info, split


def recorded(meta: Any) -> DataInfo | None:
    """The `data` part of a checkpoint's metadata; None where it is empty, or only says how images are normalised.

    Raises DamagedFile.
    """
    if not meta or (isinstance(meta, Mapping) and meta.keys() <= {"mean", "std"}):
        return None
    with damage.reading("the checkpoint's record of its data"):
        return DataInfo.from_meta(meta)


def _reopen(known: DataInfo, options: DataOptions) -> Source:
    try:
        return find(known.spec, options.image_size)
    except StarfireError as error:
        text = f"the checkpoint's data cannot be opened ({error}); --data PATH says where they are now"
        raise StarfireError(text) from None


def _pipeline_for(val: Part, known: DataInfo | None, options: DataOptions) -> InputPipeline:
    if known is None or options.image_size != known.image_size:
        return input_pipeline.choose_pipeline(val, len(val), options)
    stored = int(val.images.shape[-1]) if isinstance(val, Pixels) else known.stored
    if stored is not None and 3 * stored**2 * len(val) > input_pipeline.ROOM:  # no training has ever kept so much
        return input_pipeline.choose_pipeline(val, len(val), options)
    return InputPipeline(stored=stored, out=known.image_size, resize=known.resize)


def _split(
    part: Part, pipeline: InputPipeline, options: DataOptions, augment: Augment | None
) -> tuple[Split, tuple[str, ...]]:
    if isinstance(part, Pixels):
        return ResidentSplit(part, options, out=pipeline.out, augment=augment, resize=pipeline.resize), ()
    decode.select_decoder(much=pipeline.stored is None or len(part) >= WORTH_IMPORTING)
    if pipeline.stored is not None:
        pixels, skipped, notes = decode_cache.decoded(part, pipeline.stored, options)
        split = ResidentSplit(
            pixels, options, out=pipeline.out, augment=augment, resize=pipeline.resize, skipped=skipped
        )
        return split, notes
    if augment is not None:  # an augmentation that cannot cut boxes says so now, not in a worker
        one = np.array([pipeline.out])
        augment.boxes(Draws(0, 0, np.array([0])), one, one)
    reader = ImageReader(
        files=part, out=pipeline.out, resize=pipeline.resize or pipeline.out, augment=augment, seed=options.seed
    )
    note = f"JPEGs are decoded by {decode.jpeg_decoder()[0]}, with {options.workers} workers"
    return StreamSplit(reader, options), () if augment is None else (note,)


def _measure_stats(part: Part, split: Split, pipeline: InputPipeline, options: DataOptions) -> Stats:
    if isinstance(split, ResidentSplit):
        return statistics.of_pixels(split.images)
    assert not isinstance(part, Pixels)
    # Of remote shards the first images, so that not all shards must come.
    far = isinstance(part, Shards) and part.spool is not None
    sample = part.take(np.arange(min(STATS_SAMPLE, len(part)))) if far else limited(part, STATS_SAMPLE, "")
    assert not isinstance(sample, Pixels)
    images, _ = decode_cache.read_all(
        ImageReader(files=sample, out=pipeline.out, resize=pipeline.resize or pipeline.out), options
    )
    return statistics.of_pixels(images)
