"""In which parts does a rank work through its share of a batch, and who are the images in them?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Part:
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


def parts(images: Tensor, labels: Tensor, accumulate: int) -> Iterator[Part]:
    """This rank's share of a batch in `accumulate` parts; fewer where it is that small, none where it is empty."""
    if not len(labels):
        return
    start = 0
    chunks = [tensor.chunk(accumulate) for tensor in (images, labels)]
    for number, (some, their) in enumerate(zip(*chunks, strict=True), start=1):
        yield Part(images=some, labels=their, start=start, last=number == len(chunks[0]))
        start += len(their)


def places(part: Part, *, accumulate: int, whole: int, rank: int, ranks: int) -> Tensor:
    """Who the images are, as random starts are drawn by it: the same whichever rank has them, int64, (N,).

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
