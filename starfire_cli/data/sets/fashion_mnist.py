"""Fashion-MNIST (Xiao et al. 2017): 70,000 pictures of clothes of 28 x 28 pixels, grey."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starfire_cli.data.sets import SETS, _torchvision
from starfire_cli.data.source import Source, Stats

STATS: Stats = ((0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530))


@SETS.register("fashion-mnist")
@dataclass(frozen=True)
class FashionMnist:
    """The four idx files, unpacked, where torchvision puts them or in one folder."""

    def recognises(self, path: Path) -> bool:
        """The folder FashionMNIST, its parent, or a folder of idx files, packed or not, that says nothing else."""
        return _torchvision.has_idx_files("FashionMNIST", path)

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """The t10k images are the validation part. Raises StarfireError where the files are not found."""
        return _torchvision.mnist("FashionMNIST", path, STATS, "crop-flip:padding=2")
