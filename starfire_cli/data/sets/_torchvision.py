"""Sets that torchvision knows: the same files in the same places, read by its classes; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from starfire_cli.data.sets import _places
from starfire_cli.data.source import Pixels, Source, Stats
from starfire_cli.errors import StarfireError


def cifar(kind: str, folder: str, path: Path | None, stats: Stats) -> Source:
    """CIFAR-10 or CIFAR-100 by the torchvision class called `kind`, which checks the files' MD5 sums first."""
    name = kind.lower()
    place = _places.given(name, path, f"{folder}/ (from {folder.replace('-batches-py', '-python')}.tar.gz, unpacked)")
    root = place.parent if place.name == folder else place
    import torchvision.datasets

    try:
        both: list[Any] = [getattr(torchvision.datasets, kind)(root, train=t, download=False) for t in (True, False)]
    except (RuntimeError, OSError, EOFError):
        raise StarfireError(
            f"--data {name}:{place}: no sound {folder}/ there (missing, or its files differ from the published ones); "
            f"unpack the archive again so that {root / folder} holds its files, or give a folder of class folders"
        ) from None
    train, val = (
        Pixels(
            images=torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            labels=np.asarray(part.targets, dtype=np.int64),
        )
        for part in both
    )
    return Source(
        name=name,
        path=place,
        classes=tuple(both[0].classes),
        list_train=lambda: train,
        val=val,
        augment="crop-flip",
        stats=stats,
    )


def mnist(kind: str, path: Path | None, stats: Stats, augment: str) -> Source:
    """MNIST or a set in its format; `kind` is torchvision's class, which is also the name of the folder it uses."""
    name = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist"}[kind]
    place = _places.given(name, path, f"{kind}/raw/ with the four idx files, unpacked")
    raw = next((p for p in (place / kind / "raw", place / "raw", place) if (p / _FILES[0]).is_file()), None)
    missing = [f for f in _FILES if not ((raw or place) / f).is_file()]
    if raw is None or missing:
        packed = list(place.rglob("*-ubyte.gz"))
        hint = f"gunzip the files in {packed[0].parent}" if packed else f"put them into {place / kind / 'raw'}"
        raise StarfireError(f"--data {name}:{place}: {', '.join(missing)} not found; {hint}")
    import torchvision.datasets
    from torchvision.datasets.mnist import read_image_file, read_label_file

    parts = []
    for images, labels in (_FILES[:2], _FILES[2:]):
        try:
            grey, numbers = read_image_file(str(raw / images)), read_label_file(str(raw / labels))
        except Exception as error:  # noqa: BLE001 - torchvision asserts and indexes its way through damaged files
            raise StarfireError(f"--data {name}:{place}: {raw / images} or {labels} is damaged ({error})") from None
        if grey.ndim != 3 or len(grey) != len(numbers):
            raise StarfireError(f"--data {name}:{place}: {raw / images} and {labels} do not belong together")
        parts.append(Pixels(images=grey[:, None].expand(-1, 3, -1, -1).contiguous(), labels=numbers.numpy()))
    classes = tuple(getattr(torchvision.datasets, kind).classes)
    return Source(
        name=name,
        path=place,
        classes=classes,
        list_train=lambda: parts[0],
        val=parts[1],
        augment=augment,
        stats=stats,
    )


_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
