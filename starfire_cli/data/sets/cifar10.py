"""CIFAR-10 (Krizhevsky 2009): 60,000 images of 32 x 32 pixels, 10 classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from starfire_cli.data import scan
from starfire_cli.data.sets import SETS, _torchvision
from starfire_cli.data.sets.folder import Folder
from starfire_cli.data.source import Source, Stats

FOLDER = "cifar-10-batches-py"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STATS: Stats = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@SETS.register("cifar10")
@dataclass(frozen=True)
class Cifar10:
    """The published python archive, unpacked; or class folders with the ten names."""

    def recognises(self, path: Path) -> bool:
        """The archive's folder, its parent, or train/ with the ten class folders."""
        return path.name == FOLDER or (path / FOLDER).is_dir() or _class_folders(path)

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """The test images are the validation part. Raises StarfireError where neither layout is found."""
        if path is not None and _class_folders(path):
            return replace(Folder().read(path, image_size), name="cifar10", augment="crop-flip")
        return _torchvision.cifar("CIFAR10", FOLDER, path, STATS)


def _class_folders(path: Path) -> bool:
    return (path / "train").is_dir() and scan.subfolders(path / "train") == CLASSES
