"""Data sets of the user as `package.module:callable`, which returns training and validation images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starfire_cli.data.own_items import read_item
from starfire_cli.data.source import Pixels, Source
from starfire_cli.errors import BadOption
from starfire_cli.own_code import called, one_line

_ROOM = 2_500_000_000  # bytes of decoded images in memory, as for small images from files


@cache
def read_own(spec: str) -> Source:
    """The data set that the callable gives, decoded: called and read once.

    It returns (train, val), or a dict of these, each with `len` and items (image, label) or dicts of these, as
    `torch.utils.data.Dataset`; or one of them, of which a share is held out. Class names are those of `train.classes`,
    else the numbers.

    Raises BadOption saying what is wrong with what it returns.
    """
    found = called(spec, "data")
    both = _parts(spec, found)
    parts = [_pixels(spec, part, name) for part, name in zip(both, ("train", "val"), strict=False)]
    size = parts[0].images.shape[-1]
    for part in parts[1:]:
        if part.images.shape[-1] != size:
            raise BadOption(f"data {spec!r}: images of train have {size} pixels a side, those of val differ")
    highest = max(int(part.labels.max()) for part in parts)
    names = getattr(both[0], "classes", None)
    classes = tuple(map(str, names if names is not None else range(highest + 1)))
    if highest >= len(classes):
        raise BadOption(f"data {spec!r}: label {highest}, and there are {len(classes)} classes")
    module, _, path = spec.partition(":")
    return Source(
        name=module,
        path=None,
        classes=classes,
        list_train=lambda: parts[0],
        val=parts[1] if len(parts) > 1 else None,
        augment="none",
        notes=("your images are read once, so that what a data set of yours draws at random is drawn once",),
        url=path,  # which makes the spec again
    )


def _pixels(spec: str, data: Any, name: str) -> Pixels:
    _refuse_no_set(spec, data, name)
    images, labels = [], []
    for number in range(len(data)):
        try:
            image, label = read_item(data[number])
        except BadOption as error:
            part, _, rest = str(error).partition(" ")
            raise BadOption(f"data {spec!r}: {part} {number} of {name} {rest}") from None
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything
            raise BadOption(f"data {spec!r}: item {number} of {name} failed with {one_line(error)}") from None
        images.append(image)
        labels.append(label)
        if images[-1].shape != images[0].shape:
            raise BadOption(
                f"data {spec!r}: image {number} of {name} has shape {tuple(images[-1].shape)}, the first "
                f"{tuple(images[0].shape)}; images of one size work"
            )
        if number == 0 and images[0].numel() * len(data) > _ROOM:
            raise BadOption(
                f"data {spec!r}: {len(data)} images of {images[0].shape[-1]} pixels a side do not fit into "
                f"{_ROOM // 10**6:,} MB; a folder of classes or shards (starfire data pack) are read as they are needed"
            )
    if min(labels) < 0:
        raise BadOption(f"data {spec!r}: {name} has the label {min(labels)}; labels count from 0")
    return Pixels(images=torch.stack(images), labels=np.asarray(labels, dtype=np.int64))


def _parts(spec: str, found: Any) -> tuple[Any, ...]:
    """The data sets that were returned: (train, val) or (train,). Raises BadOption."""
    if isinstance(found, Mapping):
        val = next((name for name in ("val", "valid", "validation") if name in found), None)
        if "train" not in found or (val is None and len(found) > 1):
            names = ", ".join(map(str, list(found)[:5]))
            raise BadOption(f"data {spec!r}: a dict with {names} was returned; {_WANTED}, or a dict of train and val")
        return (found["train"],) if val is None else (found["train"], found[val])
    if isinstance(found, list) and len(found) == 2 and not any(isinstance(x, tuple | list | Mapping) for x in found):
        found = tuple(found)
    both = found if isinstance(found, tuple) else (found,)
    if len(both) not in (1, 2):
        raise BadOption(f"data {spec!r}: {len(both)} values were returned; {_WANTED}")
    return both


def _refuse_no_set(spec: str, data: Any, name: str) -> None:
    """Raises BadOption for what has no items, or images without labels."""
    if isinstance(data, torch.utils.data.DataLoader):
        raise BadOption(f"data {spec!r}: {name} is a DataLoader; its data set works, loader.dataset")
    if isinstance(data, Tensor | np.ndarray):
        raise BadOption(
            f"data {spec!r}: {name} is a {type(data).__name__}; a data set of images and labels works, such as "
            "torch.utils.data.TensorDataset(images, labels)"
        )
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise BadOption(f"data {spec!r}: {name} is a {type(data).__name__}; a data set with len and items works")
    if not len(data):
        raise BadOption(f"data {spec!r}: {name} is empty")


_WANTED = "(train, val) or one data set works"
