"""Reads one item of a data set of the user: an image and its label, in the shapes that they usually have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starfire_cli.errors import BadOption

_WANTED = (
    "images that are PIL images, uint8 arrays (S, S, 3) or (S, S), or uint8 or float tensors (3, S, S) or (1, S, S) "
    "with pixels in [0, 1]"
)
_IMAGE, _LABEL = ("image", "img"), ("label", "labels")  # of items that are dicts, as in Hugging Face's data sets


def read_item(item: Any) -> tuple[Tensor, int]:
    """(the image as uint8, (3, S, S); the label). Raises BadOption, which begins with what of the item is wrong."""
    if isinstance(item, Mapping):
        names = [next((name for name in known if name in item), None) for known in (_IMAGE, _LABEL)]
        if None in names:
            raise BadOption(f"item is a dict with {', '.join(map(str, list(item)[:5]))}; {_PAIR}")
        image, label = (item[name] for name in names)
    elif isinstance(item, tuple | list) and len(item) == 2:
        image, label = item
    else:
        count = f" of {len(item)} values" if isinstance(item, tuple | list) else ""
        raise BadOption(f"item is a {type(item).__name__}{count}; {_PAIR}")
    return _image(image), _label(label)


_PAIR = "(image, label), or a dict with image and label, works"


def _label(label: Any) -> int:
    """A whole number. Raises BadOption for what is none, as one-hot labels and names."""
    count = label.numel() if isinstance(label, Tensor) else getattr(label, "size", None)
    value = label.item() if count == 1 else label
    if isinstance(value, int | float) and value == int(value):
        return int(value)
    shape = getattr(value, "shape", None)
    if shape is not None:
        raise BadOption(f"label is of shape {tuple(shape)}; a whole number from 0 works (one-hot: label.argmax())")
    raise BadOption(f"label is {str(value)[:40]!r}, a {type(value).__name__}; a whole number from 0 works")


def _image(image: Any) -> Tensor:
    """An image as uint8, (3, S, S). Raises BadOption for what is none."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = torch.from_numpy(np.atleast_3d(image).copy()).permute(2, 0, 1)
    elif not isinstance(image, Tensor):
        if not hasattr(image, "convert"):
            raise BadOption(f"image is a {type(image).__name__}; {_WANTED} work")
        image = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.shape[1] != image.shape[2]:
        raise BadOption(f"image has shape {tuple(image.shape)}; {_WANTED} work")
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise BadOption(
                f"image has pixels from {low:.3g} to {high:.3g}; {_WANTED} work (mean and std are --mean, --std)"
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype is not torch.uint8:
        raise BadOption(f"image has type {image.dtype}; {_WANTED} work")
    found: Tensor = image.expand(3, -1, -1).contiguous()
    return found
