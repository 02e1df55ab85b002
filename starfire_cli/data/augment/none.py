"""No augmentation: training images are the same as in validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from starfire_cli.data.augment import AUGMENTATIONS
from starfire_cli.data.draws import Draws, Ints
from starfire_cli.errors import BadOption


@AUGMENTATIONS.register("none")
@dataclass(frozen=True, kw_only=True)
class Identity:
    """Images unchanged; of large ones the centre crop.

    Args:
        ratio: side of the centre box over the short side, for images of any size.
    """

    ratio: float = 224 / 256

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise BadOption(f"ratio={self.ratio} must lie above 0 and at most at 1")

    def plan(self, draws: Draws, size: int, out: int) -> dict[str, Tensor]:
        """An empty plan."""
        return {}

    def apply(self, images: Tensor, plan: dict[str, Tensor], out: int) -> Tensor:
        """The same images."""
        return images

    def boxes(self, draws: Draws, heights: Ints, widths: Ints) -> Ints:
        """The centre square."""
        side = np.maximum(np.rint(np.minimum(heights, widths) * self.ratio).astype(np.int64), 1)
        return np.stack([(heights - side) // 2, (widths - side) // 2, side, side, np.zeros_like(side)], axis=1)
