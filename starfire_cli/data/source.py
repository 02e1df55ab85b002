"""Data sources: the images and labels of a set, before anything is decoded or moved to a device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from starfire_cli.data.draws import Ints, shuffled
from starfire_cli.data.shards.layout import Shards, check_length

Chosen = npt.NDArray[np.bool_] | npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Decoded images.

    Args:
        images: uint8 (N, 3, S, S).
        labels: (N,) class numbers.
    """

    images: Tensor
    labels: Ints

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Chosen) -> Pixels:
        """Some of the images: a mask (N,) or positions."""
        import torch

        return Pixels(images=self.images[torch.from_numpy(chosen)], labels=self.labels[chosen])


@dataclass(frozen=True, kw_only=True)
class Files:
    """Images in files on a disk.

    Args:
        root: the folder that names start from.
        names: (N,) UTF-8 names, `class/image.jpg`, as an array of bytes: a million of them stay small, and forked
            workers share them.
        labels: (N,) class numbers.
        others: how many files that are no images lie beside them, by extension.
    """

    root: Path
    names: npt.NDArray[np.bytes_]
    labels: Ints
    others: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, position: int) -> str:
        """The path of the image at `position`."""
        return os.path.join(self.root, os.fsdecode(self.names[position]))

    @property
    def title(self) -> str:
        """A title for the name of a cache file."""
        return f"{self.root.parent.name}-{self.root.name}"

    def read(self, position: int) -> bytes:
        """The bytes of the file at `position`. Raises OSError."""
        with open(self.path(position), "rb") as file:
            check_length(os.fstat(file.fileno()).st_size)
            return file.read()

    def where(self, position: int) -> str:
        """The path, for messages."""
        return self.path(position)

    def stamps(self) -> Iterator[bytes]:
        """Bytes that change when an image may have changed. Raises OSError where a file is not there."""
        yield os.fsencode(self.root.resolve())
        for position in range(len(self)):
            status = os.stat(self.path(position))
            yield b"%s %d %d\n" % (self.names[position], status.st_size, status.st_mtime_ns)

    def order(self, seed: int, epoch: int) -> Ints:
        """(N,) the positions of all images as an epoch reads them."""
        return shuffled(len(self), seed, epoch)

    def take(self, chosen: Chosen) -> Files:
        """Some of the images: a mask (N,) or positions."""
        return Files(root=self.root, names=self.names[chosen], labels=self.labels[chosen], others=self.others)


Encoded = Files | Shards  # images that are yet to be decoded
Part = Pixels | Encoded
Stats = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as found, before decoding.

    Args:
        name: what it is called.
        path: where it lies; None for a set that ships with a package.
        classes: names in label order.
        list_train: returns the training images; all images where `val` is None.
        val: the validation images, None where the set has none of its own.
        augment: what `auto` means for it; None where that depends on the images.
        stats: known mean and std of the training images.
        notes: what a user should know.
        url: where it lies, for a set that is on no disk.
    """

    name: str
    path: Path | None
    classes: tuple[str, ...]
    list_train: Callable[[], Part]
    val: Part | None
    augment: str | None = None
    stats: Stats | None = None
    notes: tuple[str, ...] = ()
    url: str | None = None

    @cached_property
    def train(self) -> Part:
        """The training images, listed on first use: validation alone need not list a million of them."""
        return self.list_train()

    @property
    def spec(self) -> str:
        """The text that finds it again from any working directory."""
        if self.url is not None:
            return f"{self.name}:{self.url}"
        return f"{self.name}:{self.path.resolve()}" if self.path else self.name
