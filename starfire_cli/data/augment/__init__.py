"""Registry of training augmentations, one file each; none of them changes an image's label.

An augmentation first plans an epoch (numbers per image, from hashes, on the CPU) and then applies its plan to whole
batches on the device.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from starfire_cli.data.draws import Draws, Ints
from starfire_cli.registry import Family


class Augment(Protocol):
    """What every augmentation can do. Sizes are sides of square images in pixels."""

    def plan(self, draws: Draws, size: int, out: int) -> dict[str, Tensor]:
        """Numbers for each image of an epoch, each tensor (N, ...), for images stored at `size`."""

    def apply(self, images: Tensor, plan: dict[str, Tensor], out: int) -> Tensor:
        """uint8 (B, 3, size, size) and their part of the plan to uint8 (B, 3, out or size, same)."""

    def boxes(self, draws: Draws, heights: Ints, widths: Ints) -> Ints:
        """(N, 5) top, left, height, width, flip: what is cut from images of any size before scaling."""


AUGMENTATIONS: Family[Augment] = Family("augmentation", "starfire_cli.data.augment")
