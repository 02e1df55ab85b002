"""Micro-batches: the parts of a rank's share of a batch, and the identity of the images in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Some images of a batch that go through the network together.

    Args:
        images: (N, C, H, W).
        labels: (N,).
        start: of the first one in this rank's share.
        last: whether this rank has no further part.
    """

    images: Tensor
    labels: Tensor
    start: int
    last: bool


def part_sizes(images: int, accumulate: int, *, pairs: bool) -> list[int]:
    """The number of images of each part: as even as `torch.chunk` makes them, in `accumulate` parts or fewer.

    Args:
        images: of this rank's share of a batch.
        accumulate: in how many parts it is worked through.
        pairs: no part has a single image, unless that is all there is: what BatchNorm needs.
    """
    size = max(1, -(-images // accumulate))
    if pairs and size == 1:
        size = 2
    whole, rest = divmod(images, size)
    sizes = [size] * whole + ([rest] if rest else [])
    if pairs and rest == 1 and whole:
        sizes[-2:] = [size + 1]
    return sizes


def parts(images: Tensor, labels: Tensor, accumulate: int, *, pairs: bool = False) -> Iterator[MicroBatch]:
    """This rank's share of a batch in parts (see `part_sizes`); none where it is empty."""
    sizes = part_sizes(len(labels), accumulate, pairs=pairs)
    start = 0
    for number, (some, their) in enumerate(
        zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True), start=1
    ):
        yield MicroBatch(images=some, labels=their, start=start, last=number == len(sizes))
        start += len(their)


def places(part: MicroBatch, *, accumulate: int, whole: int, rank: int, ranks: int) -> Tensor:
    """The images' identities, by which random starts are drawn: the same whichever rank has them, int64, (N,).

    The number of the part that each would be in if one process had the whole batch, above 32 bits of its place there.

    Args:
        part: of this rank's share, which is `[rank::ranks]` of the whole batch.
        accumulate: in how many parts a batch is worked through.
        whole: images in the whole batch.
        rank: this one.
        ranks: how many share the batch.
    """
    place = torch.arange(part.start, part.start + len(part.labels), device=part.labels.device) * ranks + rank
    size = -(-whole // accumulate)
    return (torch.div(place, size, rounding_mode="floor") << 32) + place % size
