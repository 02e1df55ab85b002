"""Data sets of the user as `package.module:callable`, which returns training and validation images."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starfire_cli.data.source import Pixels, Source
from starfire_cli.errors import BadOption
from starfire_cli.own_code import called, one_line

_ROOM = 2_500_000_000  # bytes of decoded images in memory, as for small images from files
_WANTED = "images that are PIL images, or uint8 or float tensors (3, S, S) or (1, S, S) with pixels in [0, 1]"


@cache
def read_own(spec: str) -> Source:
    """The data set that the callable gives, decoded: called and read once.

    It returns (train, val), each with `len` and items (image, label), as `torch.utils.data.Dataset`; or one of them, of
    which a share is held out. Class names are those of `train.classes`, else the numbers.

    Raises BadOption saying what is wrong with what it returns.
    """
    found = called(spec, "data")
    both = found if isinstance(found, tuple) else (found,)
    if len(both) not in (1, 2):
        raise BadOption(f"data {spec!r}: {len(both)} values were returned; (train, val) or one data set works")
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
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise BadOption(f"data {spec!r}: {name} is a {type(data).__name__}; a data set with len and items works")
    if not len(data):
        raise BadOption(f"data {spec!r}: {name} is empty")
    images, labels = [], []
    for number in range(len(data)):
        try:
            image, label = data[number]
            labels.append(int(label))
            images.append(_decoded(image))
        except BadOption as error:
            raise BadOption(f"data {spec!r}: image {number} of {name} {error}") from None
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything
            raise BadOption(f"data {spec!r}: item {number} of {name} failed with {one_line(error)}") from None
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


def _decoded(image: Any) -> Tensor:
    """An image as uint8, (3, S, S). Raises BadOption for what is none."""
    if not isinstance(image, Tensor):
        if not hasattr(image, "convert"):
            raise BadOption(f"is a {type(image).__name__}; {_WANTED} work")
        image = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.shape[1] != image.shape[2]:
        raise BadOption(f"has shape {tuple(image.shape)}; {_WANTED} work")
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise BadOption(f"has pixels from {low:.3g} to {high:.3g}; {_WANTED} work (mean and std are --mean, --std)")
        image = (image * 255).round().to(torch.uint8)
    if image.dtype is not torch.uint8:
        raise BadOption(f"has type {image.dtype}; {_WANTED} work")
    found: Tensor = image.expand(3, -1, -1).contiguous()
    return found
