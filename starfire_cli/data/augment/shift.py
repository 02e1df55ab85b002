"""Crop with padding and no mirror: for small images that must not be mirrored."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from starfire_cli.data.augment import AUGMENTATIONS
from starfire_cli.data.augment.crop_flip import CropFlip
from starfire_cli.data.draws import Draws, Ints
from starfire_cli.errors import BadOption


@AUGMENTATIONS.register("shift")
@dataclass(frozen=True, kw_only=True)
class Shift:
    """torchvision's RandomCrop(size, padding).

    Args:
        pixels: most shift in each direction; what comes in is black.
    """

    pixels: int = 2

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise BadOption(f"pixels={self.pixels} must be 1 or more")

    def plan(self, draws: Draws, size: int, out: int) -> dict[str, Tensor]:
        """The corner of the crop in the padded image."""
        return self._crop.plan(draws, size, out)

    def apply(self, images: Tensor, plan: dict[str, Tensor], out: int) -> Tensor:
        """Images of the same size."""
        return self._crop.apply(images, plan, out)

    def boxes(self, draws: Draws, heights: Ints, widths: Ints) -> Ints:
        """A square of fixed share at a random place."""
        return self._crop.boxes(draws, heights, widths)

    @property
    def _crop(self) -> CropFlip:
        return CropFlip(padding=self.pixels, flip=0)
