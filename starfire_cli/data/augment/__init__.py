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
    """The interface of augmentations. Sizes are sides of square images in pixels."""

    def plan(self, draws: Draws, size: int, out: int) -> dict[str, Tensor]:
        """Random parameters for each image of an epoch, each tensor (N, ...), for images stored at `size`."""

    def apply(self, images: Tensor, plan: dict[str, Tensor], out: int) -> Tensor:
        """Augments uint8 (B, 3, size, size) by their part of the plan, to (B, 3, out or size, same)."""

    def boxes(self, draws: Draws, heights: Ints, widths: Ints) -> Ints:
        """(N, 5) top, left, height, width, flip: the crop of each image, of any size, before resizing."""


AUGMENTATIONS: Family[Augment] = Family("augmentation", "starfire_cli.data.augment")
