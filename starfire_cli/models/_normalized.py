"""Wraps a network that expects normalised images so that it takes pixels in [0, 1]; mean and std are part of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """`net((pixels - mean) / std)`, with mean and std a channel.

    Neither enters the state dict: `.net.state_dict()` is the plain model's.

    Args:
        net: the plain model.
        mean: one number a channel, in pixels of [0, 1].
        std: one number a channel, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], (N, C, H, W), to logits, (N, classes)."""
        logits: Tensor = self.net((pixels - self.mean) / self.std)
        return logits
