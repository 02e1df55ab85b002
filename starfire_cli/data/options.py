"""Data options and data records: what a user asks for, what is known about the set, and the batches it yields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from starfire_cli.damage import Damaged
from starfire_cli.errors import BadOption

LARGEST = 2**14  # pixels that a side of what a network sees may have


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options for reading and delivering a data set.

    Args:
        batch_size: training images a batch.
        eval_batch_size: validation images a batch; the training batch size where None.
        image_size: side of the square images that the network sees; the set's own where None.
        augment: spec of the training augmentation, `auto` for the set's own.
        seed: with epoch and image index the only source of randomness in training batches.
        device: where batches appear.
        workers: processes that decode large images, and that decode small ones once.
        skip_corrupt: leave out images that cannot be decoded, and count them, where False is an error.
        val_fraction: share of each class held out, for sets without a validation part.
        split_seed: decides which images are held out.
        limit_train: use only so many training images, spread over the classes.
        limit_val: the same for validation.
        limit_seed: decides which validation images these are.
        timeout: seconds to wait for a worker before it counts as dead.
        channels_last: memory format of the batches.
        rank: which of the processes that train together this one is.
        ranks: how many they are; each gets the images `rank`, `rank + ranks`, ... of every batch.
        progress: told what is being done, how many images are through, and of how many, while small ones are decoded.
    """

    batch_size: int = 128
    eval_batch_size: int | None = None
    image_size: int | None = None
    augment: str = "auto"
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 2
    skip_corrupt: bool = False
    val_fraction: float = 0.2
    split_seed: int = 0
    limit_train: int | None = None
    limit_val: int | None = None
    limit_seed: int = 0
    timeout: float = 120
    channels_last: bool = False
    rank: int = 0
    ranks: int = 1
    progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadOption(f"--{name.replace('_', '-')} {value} must be 1 or more")
        if self.workers < 0:
            raise BadOption(f"--workers {self.workers} must be 0 (decode in the main process) or more")


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """Facts about an opened data set.

    Args:
        name: what the set is called (`digits`, `cifar10`, `folder`).
        spec: the text that opens it again, from any working directory.
        classes: class names in label order.
        mean: of the training images per channel, in [0, 1].
        std: likewise.
        image_size: side of the images in a batch.
        train_images: how many there are, after limits and without corrupt ones found so far.
        val_images: likewise.
        augment: spec of the training augmentation in use.
        val_fraction: share held out, or None for a set with a validation part of its own.
        split_seed: decides which images were held out.
        resize: short side that validation images are scaled to before the centre crop; None where they are not.
        stored: side of the images as they are kept on the device; None for images that workers decode.
        notes: what a user should know, one sentence each.
    """

    name: str
    spec: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    train_images: int
    val_images: int
    augment: str = "none"
    val_fraction: float | None = None
    split_seed: int = 0
    resize: int | None = None
    stored: int | None = None
    notes: tuple[str, ...] = ()

    def as_meta(self) -> dict[str, Any]:
        """The `data` part of a checkpoint's metadata: plain types, enough for `open_val`."""
        values = dataclasses.asdict(self)
        for key in ("notes", "train_images", "val_images"):
            del values[key]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_meta(cls, values: Mapping[str, Any]) -> DataInfo:
        """Read what `as_meta` wrote. Raises Damaged or another exception for anything else: call it under `reading`."""
        mean, std = ([float(v) for v in values[key]] for key in ("mean", "std"))
        (red, green, blue), (red_std, green_std, blue_std) = mean, std
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise Damaged(f"mean {mean} and standard deviation {std} cannot be")
        fraction = None if values.get("val_fraction") is None else float(values["val_fraction"])
        if fraction is not None and not 0 < fraction < 1:
            raise Damaged(f"a share of {fraction:g} held out")
        size, resize, stored = (_side(values, key) for key in ("image_size", "resize", "stored"))
        if size is None or (resize is not None and resize < size):
            raise Damaged(f"images of {size} px cut from {resize} px")
        if not isinstance(values["classes"], list | tuple):
            raise Damaged("classes must be a list of names")
        return cls(
            name=str(values["name"]),
            spec=str(values["spec"]),
            classes=tuple(str(name) for name in values["classes"]),
            mean=(red, green, blue),
            std=(red_std, green_std, blue_std),
            image_size=size,
            train_images=0,
            val_images=0,
            augment=str(values.get("augment", "none")),
            val_fraction=fraction,
            split_seed=int(values.get("split_seed", 0)),
            resize=resize,
            stored=stored,
        )


def _side(values: Mapping[str, Any], key: str) -> int | None:
    """A number of pixels that metadata name. Raises Damaged where no image has such a side."""
    value = values.get(key)
    if value is not None and not 2 <= int(value) <= LARGEST:  # of one pixel, torch cannot make any
        raise Damaged(f"{key} {int(value)}; 2 to {LARGEST} pixels are possible")
    return None if value is None else int(value)


class Split(Protocol):
    """One part of a data set, delivered in batches."""

    @property
    def steps(self) -> int:
        """Batches an epoch, of all ranks together."""

    @property
    def skipped(self) -> int:
        """Corrupt images left out so far (only with `skip_corrupt`)."""

    def __len__(self) -> int:
        """Images an epoch, of all ranks together."""

    def digests(self) -> dict[str, str]:
        """Digests that identify this part, by name; takes a few milliseconds."""

    def batches(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images float32 in [0, 1], (N, 3, H, W), and labels int64, (N,), from batch `start` on.

        With several ranks this one's share of each batch: as one process would see it, `[rank::ranks]`; N may be 0.
        """


@dataclass(frozen=True)
class Data:
    """An opened data set: the facts about it, and its two parts."""

    info: DataInfo
    train: Split
    val: Split
