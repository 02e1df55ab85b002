"""Crop with padding and mirror: the usual augmentation of CIFAR (He et al. 2015, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from starfire_cli.data.augment import AUGMENTATIONS
from starfire_cli.data.draws import Draws, Ints
from starfire_cli.errors import BadOption


@AUGMENTATIONS.register("crop-flip")
@dataclass(frozen=True, kw_only=True)
class CropFlip:
    """torchvision's RandomCrop(size, padding) and RandomHorizontalFlip; optionally Cutout.

    Args:
        padding: black pixels added on each side before the crop.
        flip: probability of mirroring left and right.
        cutout: side of a black square at a random place (DeVries and Taylor 2017); 0 for none.
        ratio: side of the box over the short side, for images of any size.
    """

    padding: int = 4
    flip: float = 0.5
    cutout: int = 0
    ratio: float = 224 / 256

    def __post_init__(self) -> None:
        if self.padding < 0 or self.cutout < 0:
            raise BadOption(f"padding={self.padding} and cutout={self.cutout} must be 0 or more")
        if not 0 <= self.flip <= 1:
            raise BadOption(f"flip={self.flip} must lie in 0..1")
        if not 0 < self.ratio <= 1:
            raise BadOption(f"ratio={self.ratio} must lie above 0 and at most at 1")

    def plan(self, draws: Draws, size: int, out: int) -> dict[str, Tensor]:
        """The corner of the crop in the padded image, the mirroring, and the centre of the black square."""
        plan = {
            "top": torch.from_numpy(draws.integers(0, 2 * self.padding)),
            "left": torch.from_numpy(draws.integers(0, 2 * self.padding)),
            "flip": torch.from_numpy(draws.coin(self.flip)),
        }
        if self.cutout:
            plan["y"] = torch.from_numpy(draws.integers(0, size - 1))
            plan["x"] = torch.from_numpy(draws.integers(0, size - 1))
        return plan

    def apply(self, images: Tensor, plan: dict[str, Tensor], out: int) -> Tensor:
        """Images of the same size."""
        size, line = images.shape[-1], torch.arange(images.shape[-1], device=images.device)
        which = torch.arange(len(images), device=images.device)
        # A view of all crops of all images, from which one of each is copied.
        crops = pad(images, (self.padding,) * 4).unfold(2, size, 1).unfold(3, size, 1)
        result = crops[which, :, plan["top"], plan["left"]]
        result = torch.where(plan["flip"][:, None, None, None], result.flip(3), result)
        if self.cutout:
            first_y, first_x = (plan[axis][:, None] - self.cutout // 2 for axis in ("y", "x"))
            dark_BH = (line >= first_y) & (line < first_y + self.cutout)
            dark_BW = (line >= first_x) & (line < first_x + self.cutout)
            result = result.masked_fill((dark_BH[:, :, None] & dark_BW[:, None, :])[:, None], 0)
        return result

    def boxes(self, draws: Draws, heights: Ints, widths: Ints) -> Ints:
        """A square of fixed share at a random place (resize to 256, random crop of 224)."""
        if self.cutout:
            raise BadOption("cutout works on small images only; leave it out for images that workers decode")
        side = np.maximum(np.rint(np.minimum(heights, widths) * self.ratio).astype(np.int64), 1)
        top, left = draws.integers(0, heights - side), draws.integers(0, widths - side)
        return np.stack([top, left, side, side, draws.coin(self.flip).astype(np.int64)], axis=1)
