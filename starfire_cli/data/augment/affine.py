"""Small rotations, shifts and rescaling without mirroring: for digits, letters and other signs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from starfire_cli.data.augment import AUGMENTATIONS
from starfire_cli.data.draws import Draws, Ints
from starfire_cli.errors import BadOption


@AUGMENTATIONS.register("affine")
@dataclass(frozen=True, kw_only=True)
class Affine:
    """torchvision's RandomAffine(degrees, translate, scale), bilinear, black outside.

    Args:
        degrees: most rotation to either side.
        translate: most shift in each direction, as a share of the side.
        scale: most growth or shrinkage, as a share.
    """

    degrees: float = 10.0
    translate: float = 0.1
    scale: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise BadOption(f"degrees={self.degrees} must lie in 0..180")
        if not 0 <= self.translate <= 1:
            raise BadOption(f"translate={self.translate} must lie in 0..1")
        if not 0 <= self.scale < 1:
            raise BadOption(f"scale={self.scale} must lie in 0..1, 1 excluded")

    def plan(self, draws: Draws, size: int, out: int) -> dict[str, Tensor]:
        """`theta` (N, 2, 3): from coordinates in the result to coordinates in the image, both in -1..1."""
        angle = draws.uniform(-math.radians(self.degrees), math.radians(self.degrees))
        growth = draws.uniform(1 - self.scale, 1 + self.scale)
        x, y = (draws.uniform(-2 * self.translate, 2 * self.translate) for _ in range(2))
        cos, sin = np.cos(angle) / growth, np.sin(angle) / growth
        first = np.stack([cos, sin, -cos * x - sin * y], axis=1)
        second = np.stack([-sin, cos, sin * x - cos * y], axis=1)
        return {"theta": torch.from_numpy(np.stack([first, second], axis=1).astype(np.float32))}

    def apply(self, images: Tensor, plan: dict[str, Tensor], out: int) -> Tensor:
        """Images of the same size."""
        with torch.autocast(images.device.type, enabled=False):
            grid = affine_grid(plan["theta"], list(images.shape), align_corners=False)
            moved = grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return moved.round_().clamp_(0, 255).to(torch.uint8)

    def boxes(self, draws: Draws, heights: Ints, widths: Ints) -> Ints:
        """Raises BadOption: it needs images of one size."""
        raise BadOption("augmentation 'affine' works on small images only; large ones take rrc-flip, crop-flip or none")
