"""Mean and standard deviation of the training images, per channel."""

from __future__ import annotations

import torch
from torch import Tensor

from starfire_cli.data.source import Stats

IMAGENET: Stats = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SAMPLE = 20_000


def of_pixels(images: Tensor) -> Stats:
    """Mean and std in [0, 1] of uint8 (N, 3, H, W): exact sums, over every n-th image where there are many."""
    images = images[:: -(-len(images) // SAMPLE)]
    count = images.shape[0] * images.shape[2] * images.shape[3]
    total, squares = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    for start in range(0, len(images), 1024):
        wide = images[start : start + 1024].to(torch.int32)
        total += wide.sum(dim=(0, 2, 3)).cpu()
        squares += (wide * wide).sum(dim=(0, 2, 3)).cpu()
    mean = total.double() / count
    deviation = (squares.double() / count - mean**2).clamp(min=0).sqrt()
    # A constant channel would be divided by zero.
    return _three(mean / 255), _three((deviation / 255).clamp(min=1 / 255))


def _three(values: Tensor) -> tuple[float, float, float]:
    red, green, blue = (round(v, 6) for v in values.tolist())
    return red, green, blue
