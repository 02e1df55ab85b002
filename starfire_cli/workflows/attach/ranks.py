"""Means over the processes that train a model together, where torch.distributed runs several."""

from __future__ import annotations

import torch
from torch import Tensor


def average_of_ranks(tensors: list[Tensor]) -> list[Tensor]:
    """The mean over all processes of each tensor, in its dtype; computed in float64, so that equal ones stay equal."""
    dist = torch.distributed
    if not tensors or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensors
    flat = torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = torch.split(flat / dist.get_world_size(), [tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]
