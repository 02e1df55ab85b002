"""Handwritten digits that ship inside scikit-learn: real images with nothing to download.

The test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998): 1797 images of
8 x 8 pixels with 17 levels of grey.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from starfire_cli.data.draws import Ints
from starfire_cli.data.sets import SETS
from starfire_cli.data.source import Pixels, Source
from starfire_cli.errors import BadOption, StarfireError

SIZE = 16


@SETS.register("digits")
@dataclass(frozen=True)
class Digits:
    """1797 digits, scaled up bilinearly once."""

    def recognises(self, path: Path) -> bool:
        """False: the set has no folder."""
        return False

    def read(self, path: Path | None, image_size: int | None) -> Source:
        """All digits; there is no validation part. Raises BadOption for a path."""
        if path is not None:
            raise BadOption(f"--data digits:{path}: digits ship with scikit-learn and take no path; use --data digits")
        grey, labels = load()
        size = image_size or SIZE
        images = torch.from_numpy(grey)[:, None] * (255 / 16)
        scaled = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        pixels = scaled.round_().clamp_(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        return Source(
            name="digits",
            path=None,
            classes=tuple(str(d) for d in range(10)),
            list_train=lambda: Pixels(images=pixels, labels=labels),
            val=None,
            augment="affine",
        )


def load() -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], Ints]:
    """(1797, 8, 8) levels 0..16 and (1797,) labels. Raises StarfireError without scikit-learn."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise StarfireError(
            "--data digits needs scikit-learn, which is not installed; `pip install scikit-learn` works"
        )
    table = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if table.is_file():  # what load_digits reads; importing scikit-learn for it takes over a second
        with gzip.open(table, "rt") as file:
            rows = np.loadtxt(file, delimiter=",", dtype=np.float32)
        return rows[:, :64].reshape(-1, 8, 8), rows[:, 64].astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.float32), digits.target.astype(np.int64)
