"""From what a user writes after --data to batches: which set is it, where, and by which road do its images come?"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from starfire_cli.data import statistics
from starfire_cli.data.augment import AUGMENTATIONS
from starfire_cli.data.draws import choose, spread
from starfire_cli.data.options import Data, DataInfo, DataOptions
from starfire_cli.data.resident import ResidentSplit
from starfire_cli.data.sets import SETS
from starfire_cli.data.small import to_pixels
from starfire_cli.data.source import Part, Source
from starfire_cli.errors import BadOption, StarfireError, unknown


def open_data(spec: str, options: DataOptions) -> Data:
    """Open a data set.

    Args:
        spec: a name (`digits`), `name:PATH`, or a path that is recognised from its layout.
        options: how it is read and delivered.

    Raises:
        BadOption, StarfireError: one line that says what was given, what was seen and what works.
    """
    source = find(spec, options.image_size)
    train, val = parts(source, options)
    pixels, stored, skipped, notes = to_pixels(train, source.name, options, None)
    val_pixels, _, val_skipped, val_notes = to_pixels(val, source.name, options, stored)
    size = options.image_size or stored
    augment_spec = options.augment if options.augment != "auto" else source.augment or "crop-flip"
    augment = AUGMENTATIONS.build(augment_spec)
    mean, std = source.stats or statistics.of_pixels(pixels.images)
    if len(pixels) < options.batch_size:
        raise StarfireError(
            f"--batch-size {options.batch_size}: there are only {len(pixels)} training images; "
            f"--batch-size {len(pixels)} or less works"
        )
    info = DataInfo(
        name=source.name,
        spec=f"{source.name}:{source.path.resolve()}" if source.path else source.name,
        classes=source.classes,
        mean=mean,
        std=std,
        image_size=size,
        train_images=len(pixels),
        val_images=len(val_pixels),
        augment=AUGMENTATIONS.spec(augment),
        val_fraction=options.val_fraction if source.val is None else None,
        split_seed=options.split_seed,
        stored=stored,
        notes=(*source.notes, *notes, *val_notes),
    )
    return Data(
        info=info,
        train=ResidentSplit(pixels, options, out=size, augment=augment, skipped=skipped),
        val=ResidentSplit(val_pixels, options, out=size, augment=None, skipped=val_skipped),
    )


def find(spec: str, image_size: int | None) -> Source:
    """The data set that `spec` names, listed but not decoded."""
    name, colon, rest = spec.partition(":")
    if name in SETS.names():
        return SETS.build(name).read(existing(rest, spec) if colon else None, image_size)
    if not Path(spec).expanduser().exists() and not any(c in spec for c in "/\\.~:"):
        raise unknown("data set", spec, SETS.names())
    path = existing(spec, spec)
    for known in SETS.names():
        data_set = SETS.build(known)
        if data_set.recognises(path):
            return data_set.read(path, image_size)
    return SETS.build("folder").read(path, image_size)


def existing(text: str, spec: str) -> Path:
    """The folder that `text` names. Raises StarfireError where there is none."""
    path = Path(text).expanduser()
    if not path.exists():
        raise StarfireError(f"--data {spec}: {path} does not exist (looked in {Path.cwd()})")
    if not path.is_dir():
        raise StarfireError(f"--data {spec}: {path} is a file; unpack it and give the folder")
    return path


def parts(source: Source, options: DataOptions) -> tuple[Part, Part]:
    """Training and validation part: split where the set has one part only, then limited."""
    train, val = source.train, source.val
    if val is None:
        train, val = held_out(train, source.classes, options)
    return limited(train, options.limit_train, "--limit-train"), limited(val, options.limit_val, "--limit-val")


def held_out(part: Part, classes: tuple[str, ...], options: DataOptions) -> tuple[Part, Part]:
    """The same share of each class held out, at least one image, decided by hashes of the split seed."""
    if not 0 < options.val_fraction < 1:
        raise BadOption(f"--val-fraction {options.val_fraction} must lie between 0 and 1, both excluded")
    counts = np.bincount(part.labels, minlength=len(classes))
    single = [name for name, count in zip(classes, counts, strict=True) if count < 2]
    if single:
        raise StarfireError(f"class {single[0]!r} has one image: with no val/ folder each class needs two or more")
    quota = np.clip(np.rint(counts * options.val_fraction).astype(np.int64), 1, counts - 1)
    held = choose(part.labels, quota, options.split_seed)
    return part.take(~held), part.take(held)


def limited(part: Part, limit: int | None, option: str) -> Part:
    """At most `limit` images, spread over the classes."""
    if limit is not None and limit < 1:
        raise BadOption(f"{option} {limit} must be 1 or more")
    if limit is None or limit >= len(part):
        return part
    return part.take(choose(part.labels, spread(np.bincount(part.labels), limit), seed=0))


def recognise(spec: str) -> tuple[str, int | None]:
    """The name of the set that `spec` means, and the side of a folder's first image, without reading the rest.

    For whoever chooses hyperparameters before the data are opened. Raises as `open_data`.
    """
    name, colon, rest = spec.partition(":")
    if name in SETS.names() and not (colon and name == "folder"):
        return name, None
    if not Path(spec).expanduser().exists() and not any(c in spec for c in "/\\.~:"):
        raise unknown("data set", spec, SETS.names())
    path = existing(rest if name in SETS.names() else spec, spec)
    for known in SETS.names():
        if SETS.build(known).recognises(path):
            return known, None
    return "folder", first_side(path)


def first_side(path: Path) -> int | None:
    """The longer side in pixels of the first image below `path` that can be read, if there is one."""
    from PIL import Image

    for folder, _, files in os.walk(path, followlinks=True):
        for file in sorted(files)[:3]:
            try:
                with Image.open(os.path.join(folder, file)) as image:
                    return max(image.size)
            except OSError:
                continue
    return None
