"""Splits a set into training and validation images."""

from __future__ import annotations

from collections import Counter

import numpy as np

from starfire_cli.data import scan
from starfire_cli.data.draws import choose, spread
from starfire_cli.data.options import DataOptions
from starfire_cli.data.sets.folder import differences
from starfire_cli.data.source import Files, Part, Source
from starfire_cli.errors import BadOption, StarfireError


def parts(source: Source, options: DataOptions) -> tuple[Part, Part]:
    """Training and validation part: split where the set has one part only, then limited."""
    train, val = source.train, source.val
    if val is None:
        train, val = held_out(train, source.classes, options)
    train = limited(_non_empty(train, source, "training"), options.limit_train, "--limit-train")
    return train, limited(_non_empty(val, source, "validation"), options.limit_val, "--limit-val", options.limit_seed)


def validation(source: Source, options: DataOptions) -> Part:
    """The validation part that `parts` gives, computed without the training part."""
    val = source.val if source.val is not None else held_out(source.train, source.classes, options)[1]
    return limited(_non_empty(val, source, "validation"), options.limit_val, "--limit-val", options.limit_seed)


def _non_empty(part: Part, source: Source, which: str) -> Part:
    """`part`, if it has images. Raises StarfireError where it has none."""
    if not len(part):
        raise StarfireError(f"--data {source.spec}: the {which} part has no images")
    return part


def passed_over(*parts: Part | None) -> tuple[str, ...]:
    """A note on the files beside the images that were passed over; none where there were none."""
    others: Counter[str] = Counter()
    for part in parts:
        others.update(part.others if isinstance(part, Files) else {})
    text = scan.ignored_text(others)
    return (f"{text} (images end in {' '.join(scan.EXTENSIONS)})",) if text else ()


def same_classes(known: tuple[str, ...], found: tuple[str, ...], spec: str) -> None:
    """Raises StarfireError that lists how the classes found differ from the checkpoint's."""
    if found != known:
        raise StarfireError(f"--data {spec}: {differences(known, found, 'the checkpoint', 'the data')}")


def held_out(part: Part, classes: tuple[str, ...], options: DataOptions) -> tuple[Part, Part]:
    """The same share of each class held out, at least one image and never all, decided by hashes of the split seed."""
    if not 0 < options.val_fraction < 1:
        raise BadOption(f"--val-fraction {options.val_fraction:g} must lie between 0 and 1, both excluded")
    counts = np.bincount(part.labels, minlength=len(classes))
    single = [name for name, count in zip(classes, counts, strict=True) if count < 2]
    if single:
        raise StarfireError(f"class {single[0]!r} has one image; where no val/ is given each class needs two or more")
    quota = np.clip(np.rint(counts * options.val_fraction).astype(np.int64), 1, counts - 1)
    held = choose(part.labels, quota, options.split_seed)
    return part.take(~held), part.take(held)


def limited(part: Part, limit: int | None, option: str, seed: int = 0) -> Part:
    """At most `limit` images, spread over the classes."""
    if limit is not None and limit < 1:
        raise BadOption(f"{option} {limit} must be 1 or more")
    if limit is None or limit >= len(part):
        return part
    return part.take(choose(part.labels, spread(np.bincount(part.labels), limit), seed))
