"""CIFAR-100 (Krizhevsky 2009): 60,000 images of 32 x 32 pixels, 100 classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starfire_cli.data.sets import SETS, _torchvision
from starfire_cli.data.source import Source, Stats

FOLDER = "cifar-100-python"
STATS: Stats = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


@SETS.register("cifar100")
@dataclass(frozen=True)
class Cifar100:
    """The published python archive, unpacked."""

    def recognises(self, path: Path) -> bool:
        """The archive's folder or its parent."""
        return path.name == FOLDER or (path / FOLDER).is_dir()

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """The test images are the validation part. Raises StarfireError where the files are not found."""
        return _torchvision.cifar("CIFAR100", FOLDER, path, STATS)
