"""Peers of the mask benchmark: masks of a weight in plain torch, written from the published descriptions of other
methods.

None is a copy of anyone's code. Each takes a weight (K, C, R, S) and returns a bool mask; budgets are those of the
window (count smallest of R * S) or ck rule (count weakest kernels of an input channel), or a share of the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import prune


def topk_window(weight: Tensor, count: int) -> Tensor:
    """torch.topk of the survivors in each window, scattered into a mask."""
    rows = weight.abs().flatten(2).reshape(-1, weight[0, 0].numel())
    kept = rows.topk(rows.shape[1] - count, dim=1).indices
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, kept, True).reshape(weight.shape)


def sorted_blocks(weight: Tensor, count: int) -> Tensor:
    """N:M masks as SparseML and jaxpruner describe them: sort each block of M, the first M - N go."""
    rows = weight.abs().flatten(2).reshape(-1, weight[0, 0].numel())
    order = rows.argsort(dim=1)
    mask = torch.ones_like(rows, dtype=torch.bool)
    return mask.scatter_(1, order[:, :count], False).reshape(weight.shape)


def topk_kernels(weight: Tensor, count: int) -> Tensor:
    """torch.topk of the surviving kernels of each input channel, scored by their largest weight."""
    score_KC = weight.abs().amax((2, 3))
    kept = score_KC.topk(len(score_KC) - count, dim=0).indices
    mask = torch.zeros_like(score_KC, dtype=torch.bool).scatter_(0, kept, True)
    return mask[:, :, None, None].expand_as(weight).contiguous()


def l1_unstructured(weight: Tensor, share: float) -> Tensor:
    """torch.nn.utils.prune: the smallest weights of the whole layer."""
    method = prune.L1Unstructured(share)
    return method.compute_mask(weight, torch.ones_like(weight)).bool()


def threshold_of_layer(weight: Tensor, share: float) -> Tensor:
    """What unstructured pruners do (SparseML's magnitude modifier, jaxpruner): a k-th value, then a comparison."""
    flat = weight.abs().reshape(-1)
    return weight.abs() > flat.kthvalue(max(1, int(share * flat.numel()))).values


class Reparametrised(nn.Module):
    """The hot path of torch.nn.utils.prune: `weight_orig * weight_mask` at every forward pass."""

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.weight, self.mask = weight, mask.to(weight.dtype)

    def forward(self) -> Tensor:
        return self.weight * self.mask
