"""RandomResizedCrop and mirror: the usual augmentation of ImageNet (Szegedy et al. 2015)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from starfire_cli.data.augment import AUGMENTATIONS
from starfire_cli.data.draws import Draws, Ints
from starfire_cli.data.images.resample import crop_resize
from starfire_cli.errors import BadOption

TRIES = 10


@AUGMENTATIONS.register("rrc-flip")
@dataclass(frozen=True, kw_only=True)
class ResizedCropFlip:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip.

    Args:
        scale: least share of the image's area that a box has; the most is all of it.
        ratio: most width over height of a box; the least is its inverse.
        flip: probability of mirroring left and right.
    """

    scale: float = 0.08
    ratio: float = 4 / 3
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise BadOption(f"scale={self.scale} must lie above 0 and at most at 1")
        if self.ratio < 1:
            raise BadOption(f"ratio={self.ratio} must be 1 or more")
        if not 0 <= self.flip <= 1:
            raise BadOption(f"flip={self.flip} must lie in 0..1")

    def plan(self, draws: Draws, size: int, out: int) -> dict[str, Tensor]:
        """The box of each image and whether it is mirrored."""
        sides = np.full(len(draws), size, dtype=np.int64)
        return {"boxes": torch.from_numpy(self.boxes(draws, sides, sides))}

    def apply(self, images: Tensor, plan: dict[str, Tensor], out: int) -> Tensor:
        """Images of side `out`, (B, 3, out, out)."""
        return crop_resize(images, plan["boxes"], out)

    def boxes(self, draws: Draws, heights: Ints, widths: Ints) -> Ints:
        """As torchvision's get_params: ten tries, then the largest centred box of an allowed shape."""
        flip = draws.coin(self.flip).astype(np.int64)
        fallback_wide = np.minimum(widths, np.rint(heights * self.ratio).astype(np.int64))
        fallback_tall = np.minimum(heights, np.rint(widths * self.ratio).astype(np.int64))
        tall, wide = fallback_tall.copy(), fallback_wide.copy()
        top, left = (heights - tall) // 2, (widths - wide) // 2
        waiting = np.ones(len(draws), dtype=np.bool_)
        log_ratio = math.log(self.ratio)
        for tried in range(TRIES):
            if not waiting.any():
                draws.skip(4 * (TRIES - tried))  # so that what is drawn later does not depend on the neighbours
                break
            area = heights * widths * draws.uniform(self.scale, 1.0)
            aspect = np.exp(draws.uniform(-log_ratio, log_ratio))
            at_y, at_x = draws.uniform(), draws.uniform()
            w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
            h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
            fits = waiting & (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
            tall[fits], wide[fits] = h[fits], w[fits]
            top[fits] = np.floor(at_y * (heights - h + 1)).astype(np.int64)[fits]
            left[fits] = np.floor(at_x * (widths - w + 1)).astype(np.int64)[fits]
            waiting &= ~fits
        return np.stack([top, left, tall, wide, flip], axis=1)
