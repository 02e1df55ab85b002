"""Maps in memory: channel by channel with the images innermost, (C, H, W, N).

So a channel is one block of memory, a step to the next pixel is one of N floats whatever the width, and rows of vectors
never end in the middle of a register. N is a multiple of the vector's lanes; what lies behind the last image is zero.
"""

from __future__ import annotations

from torch import Tensor

from starfire_cli.sparse.training.map_memory import MAP_MEMORY

_LARGE = 1024  # floats (4 KB): from here on channels lie apart so that they do not meet in the same lines of a cache
_APART = 144  # floats, beyond whole multiples of it


def padded(images: int, lanes: int) -> int:
    """The number of images in a map that holds so many."""
    return -(-images // lanes) * lanes


def new_map(channels: int, rows: int, columns: int, images: int) -> Tensor:
    """A map without values, (C, H, W, N); channels may lie apart."""
    plane = rows * columns * images
    if plane >= _LARGE:
        plane += (_APART - plane) % _LARGE
    strides = (plane, columns * images, images, 1)
    return MAP_MEMORY.floats(channels * plane).as_strided((channels, rows, columns, images), strides)


def like(other: Tensor) -> Tensor:
    """A map of the same shape, without values."""
    C, H, W, N = other.shape
    return new_map(C, H, W, N)


def to_map(images_NCHW: Tensor, images: int) -> Tensor:
    """A map with these values, of `images` images."""
    N, C, H, W = images_NCHW.shape
    made = new_map(C, H, W, images)
    made[..., :N].copy_(images_NCHW.permute(1, 2, 3, 0))
    if images > N:
        made[..., N:].zero_()
    return made


def from_map(values: Tensor, images: int) -> Tensor:
    """The first `images` images of a map as (N, C, H, W), in the same memory."""
    return values.permute(3, 0, 1, 2)[:images]
