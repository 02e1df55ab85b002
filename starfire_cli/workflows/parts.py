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
        places: (N,) of the images in the whole batch, as random starts are drawn by them: the number of the part that
            they would be in if one process had all of the batch, above 32 bits of their place in that part.
        last: whether this rank has no further part.
    """

    images: Tensor
    labels: Tensor
    places: Tensor
    last: bool


def parts(
    images: Tensor, labels: Tensor, *, accumulate: int, whole: int, rank: int = 0, ranks: int = 1
) -> Iterator[Part]:
    """The share in `accumulate` parts; in fewer where it is that small, in none where it is empty.

    Args:
        images: this rank's share: `[rank::ranks]` of the whole batch.
        labels: likewise.
        accumulate: in how many parts.
        whole: images in the whole batch.
        rank: this one.
        ranks: how many share the batch.
    """
    if not len(labels):
        return
    place = torch.arange(len(labels), device=labels.device) * ranks + rank
    size = -(-whole // accumulate)
    places = (torch.div(place, size, rounding_mode="floor") << 32) + place % size
    chunks = [tensor.chunk(accumulate) for tensor in (images, labels, places)]
    for number, (some, their, at) in enumerate(zip(*chunks, strict=True), start=1):
        yield Part(images=some, labels=their, places=at, last=number == len(chunks[0]))
