"""Data sets of torchvision: the same files in the same places, read by its classes, without downloading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from starfire_cli import damage
from starfire_cli.data.sets import _default_folders
from starfire_cli.data.source import Pixels, Source, Stats
from starfire_cli.errors import StarfireError
from starfire_cli.text import shape_text


def cifar(kind: str, folder: str, path: Path | None, stats: Stats) -> Source:
    """CIFAR-10 or CIFAR-100 by the torchvision class called `kind`, which checks the files' MD5 sums first."""
    name = kind.lower()
    place = _default_folders.find_folder(
        name, path, f"{folder}/ (from {folder.replace('-batches-py', '-python')}.tar.gz, unpacked)"
    )
    root = place.parent if place.name == folder else place
    import torchvision.datasets

    try:
        both: list[Any] = [getattr(torchvision.datasets, kind)(root, train=t, download=False) for t in (True, False)]
    except Exception:  # noqa: BLE001 - the sums were compared before anything was read: whatever it is, files are missing
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
    place = _default_folders.find_folder(name, path, f"{kind}/raw/ with the four idx files, unpacked")
    raw = next((p for p in (place / kind / "raw", place / "raw", place) if _idx(p, _FILES[0])), None)
    missing = [f for f in _FILES if not _idx(raw or place, f)]
    if raw is None or missing:
        packed = list(place.rglob("*-ubyte.gz"))
        hint = f"gunzip the files in {packed[0].parent}" if packed else f"put them into {place / kind / 'raw'}"
        raise StarfireError(f"--data {name}:{place}: {', '.join(missing)} not found; {hint}")
    import torchvision.datasets
    from torchvision.datasets.mnist import read_image_file, read_label_file

    parts: list[Pixels] = []
    classes = tuple(getattr(torchvision.datasets, kind).classes)
    for images, labels in ((_idx(raw, a), _idx(raw, b)) for a, b in (_FILES[:2], _FILES[2:])):
        with damage.reading(f"--data {name}:{place}: {images}"):
            grey = read_image_file(str(images))
            if not len(grey) or grey.shape[1] != grey.shape[2] or not grey.shape[1]:
                raise damage.Damaged(f"square images are expected, and it has {shape_text(grey.shape)}")
        with damage.reading(f"--data {name}:{place}: {labels}"):
            numbers = read_label_file(str(labels))
            if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(classes):
                raise damage.Damaged(f"class {int(numbers.max())}, and there are {len(classes)}")
        if len(grey) != len(numbers) or (parts and parts[0].images.shape[2] != grey.shape[1]):
            raise StarfireError(f"--data {name}:{place}: {images} and the other files do not belong together")
        parts.append(Pixels(images=grey[:, None].expand(-1, 3, -1, -1).contiguous(), labels=numbers.numpy()))
    return Source(
        name=name,
        path=place,
        classes=classes,
        list_train=lambda: parts[0],
        val=parts[1],
        augment=augment,
        stats=stats,
    )


def has_idx_files(kind: str, path: Path) -> bool:
    """Whether a folder is torchvision's for `kind`, or has idx files that may belong to any set."""
    if (path.name == kind and (path / "raw").is_dir()) or (path / kind / "raw").is_dir():
        return True
    if not any(
        (path / f"{form}{ending}").is_file() for file in _FILES for form in _forms(file) for ending in ("", ".gz")
    ):
        return False
    said = path.parent.name if path.name == "raw" else path.name
    return said == kind or said not in ("MNIST", "FashionMNIST")


def _forms(file: str) -> tuple[str, str]:
    return file, file.replace("-idx", ".idx")  # as it was first published, and still is in places


def _idx(folder: Path, file: str) -> Path | None:
    return next((folder / form for form in _forms(file) if (folder / form).is_file()), None)


_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
