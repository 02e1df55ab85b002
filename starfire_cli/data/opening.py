"""How does a data set become batches? `open_data` for training, `open_val` for what comes after it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from starfire_cli.data import decode, once, statistics
from starfire_cli.data.augment import AUGMENTATIONS, Augment
from starfire_cli.data.draws import Draws
from starfire_cli.data.finding import find
from starfire_cli.data.options import Data, DataInfo, DataOptions, Split
from starfire_cli.data.reader import Reader
from starfire_cli.data.resident import ResidentSplit
from starfire_cli.data.road import Road, auto_augment, choose, with_resize
from starfire_cli.data.sets.folder import differences
from starfire_cli.data.source import Files, Part, Pixels, Source, Stats
from starfire_cli.data.splitting import limited, parts
from starfire_cli.data.stream import StreamSplit
from starfire_cli.errors import BadOption, StarfireError

STATS_SAMPLE = 512  # large images that are decoded for mean and std


def open_data(spec: str, options: DataOptions) -> Data:
    """Open a data set for training.

    Args:
        spec: a name (`digits`), `name:PATH`, or a path that is recognised from its layout.
        options: how it is read and delivered.

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
    road = choose(train, len(train) + len(val), options)
    augment = AUGMENTATIONS.build(auto_augment(source, train, road) if options.augment == "auto" else options.augment)
    road = with_resize(road, augment)
    train_split, train_notes = _split(train, road, options, augment)
    val_split, val_notes = _split(val, road, options, None)
    mean, std = source.stats or _measured(train, train_split, road, options)
    info = DataInfo(
        name=source.name,
        spec=f"{source.name}:{source.path.resolve()}" if source.path else source.name,
        classes=source.classes,
        mean=mean,
        std=std,
        image_size=road.out,
        train_images=len(train_split),
        val_images=len(val_split),
        augment=AUGMENTATIONS.spec(augment),
        val_fraction=options.val_fraction if source.val is None else None,
        split_seed=options.split_seed,
        resize=road.resize,
        stored=road.stored,
        notes=(*source.notes, *train_notes, *val_notes),
    )
    return Data(info=info, train=train_split, val=val_split)


def open_val(meta: dict[str, Any], spec: str | None, options: DataOptions) -> tuple[DataInfo, Split]:
    """The validation images that a checkpoint's metadata describes, the very same ones where the data are the same.

    Args:
        meta: the `data` part of the metadata, as `DataInfo.as_meta` made it.
        spec: other data to use, or the place where the data are now; None for where they were.
        options: batch size and device; the split, image size and scaling come from `meta` where it has them.

    Raises:
        BadOption, StarfireError: no data known, data not there, classes that are not the checkpoint's.
    """
    try:
        known = DataInfo.from_meta(meta) if meta else None
    except (KeyError, TypeError, ValueError) as error:
        raise StarfireError(f"the checkpoint's record of its data is damaged ({error!r}); it cannot be used") from None
    if spec is None and known is None:
        raise BadOption(
            "the checkpoint does not say what data it was trained on; give it: --data NAME, PATH or NAME:PATH"
        )
    if known is not None:
        options = dataclasses.replace(
            options,
            image_size=options.image_size or known.image_size,
            val_fraction=known.val_fraction or options.val_fraction,
            split_seed=known.split_seed,
        )
    source = _found(spec, known, options)
    if known is not None and source.classes != known.classes:
        raise StarfireError(
            f"--data {spec or known.spec}: {differences(known.classes, source.classes, 'the checkpoint', 'the data')}"
        )
    if source.val is None and known is not None and known.val_fraction is None:
        # The checkpoint held out no share; then a single folder of classes is meant as it stands.
        val = limited(source.train, options.limit_val, "--limit-val", options.limit_seed)
    else:
        _, val = parts(dataclasses.replace(source), dataclasses.replace(options, limit_train=None))
    road = choose(val, len(val), options)
    if known is not None and road.out == known.image_size and (road.stored is None) == (known.stored is None):
        road = Road(stored=known.stored if isinstance(val, Files) else road.stored, out=road.out, resize=known.resize)
    split, notes = _split(val, road, options, None)
    mean, std = (known.mean, known.std) if known else source.stats or _measured(val, split, road, options)
    info = DataInfo(
        name=source.name,
        spec=f"{source.name}:{source.path.resolve()}" if source.path else source.name,
        classes=source.classes,
        mean=mean,
        std=std,
        image_size=road.out,
        train_images=0,
        val_images=len(split),
        val_fraction=known.val_fraction if known else None,
        split_seed=options.split_seed,
        resize=road.resize,
        stored=road.stored,
        notes=(*source.notes, *notes),
    )
    return info, split


def _found(spec: str | None, known: DataInfo | None, options: DataOptions) -> Source:
    if spec is not None:
        return find(spec, options.image_size)
    assert known is not None
    try:
        return find(known.spec, options.image_size)
    except StarfireError as error:
        raise StarfireError(
            f"the checkpoint's data cannot be opened ({error}); --data says where they are now"
        ) from None


def _split(part: Part, road: Road, options: DataOptions, augment: Augment | None) -> tuple[Split, tuple[str, ...]]:
    if isinstance(part, Pixels):
        return ResidentSplit(part, options, out=road.out, augment=augment, resize=road.resize), ()
    decode.prepare(large=road.stored is None)
    if road.stored is not None:
        pixels, skipped, notes = once.decoded(part, road.stored, options)
        split = ResidentSplit(pixels, options, out=road.out, augment=augment, resize=road.resize, skipped=skipped)
        return split, notes
    if augment is not None:  # an augmentation that cannot cut boxes says so now, not in a worker
        one = np.array([road.out])
        augment.boxes(Draws(0, 0, np.array([0])), one, one)
    reader = Reader(files=part, out=road.out, resize=road.resize or road.out, augment=augment, seed=options.seed)
    return StreamSplit(reader, options), ()


def _measured(part: Part, split: Split, road: Road, options: DataOptions) -> Stats:
    if isinstance(split, ResidentSplit):
        return statistics.of_pixels(split.images)
    assert isinstance(part, Files)
    sample = limited(part, STATS_SAMPLE, "")
    assert isinstance(sample, Files) and road.resize is not None
    images, _ = once.read_all(Reader(files=sample, out=road.out, resize=road.resize), options)
    return statistics.of_pixels(images)
