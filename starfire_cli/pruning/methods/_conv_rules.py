"""The two rules all convolution methods are made of: inside a window, and whole kernels of an input channel."""

from __future__ import annotations

import torch
from torch import Tensor

from starfire_cli.pruning.budget import ConvBudget, prune_smallest, prune_smallest_planes, pruned
from starfire_cli.pruning.layers import Layer

_SHORT = 9  # weights of a window that are compared pair by pair


class ConvRules:
    """A method whose masks follow the rules of this file (`methods.ByRules`); it says how many, they say which."""

    def seen(self, layer: Layer) -> Layer:
        return layer

    def mask(self, layer: Layer, weight_KCRS: Tensor, alive_KCRS: Tensor, budget: ConvBudget) -> Tensor:
        return conv_mask(self.seen(layer), weight_KCRS, alive_KCRS, budget)


def window_count(layer: Layer, threshold: float, max_nonzero: int | None, progress: float) -> int:
    """Weights pruned in each window at `threshold` (Algorithm 3); the cap holds in 3 x 3 windows only."""
    cap = max_nonzero if layer.shape[2:] == (3, 3) else None
    return pruned(layer.window, threshold, cap, progress)


def kernel_count(layer: Layer, threshold: float) -> int:
    """Kernels pruned of each input channel at `threshold` (Algorithm 1); in a group, its K / groups kernels compete."""
    return pruned(layer.shape[0] // layer.groups, threshold)


def kernels_for_rest(layer: Layer, threshold: float, in_window: int) -> int:
    """Kernels pruned of each input channel so that the layer reaches `threshold` after `in_window` went everywhere.

    The share is q = (t - s) / (1 - s) with s = in_window / (R * S) (docs/method.md on Algorithm 4).
    """
    reached = in_window / layer.window
    return kernel_count(layer, (threshold - reached) / (1 - reached)) if threshold > reached else 0


def conv_mask(layer: Layer, weight_KCRS: Tensor, alive_KCRS: Tensor, budget: ConvBudget) -> Tensor:
    """Window pruning first, then whole kernels on what is left; either part may be zero.

    A kernel's score is the largest |w| that is alive in it; a dead kernel goes before any live one.
    Returns what is left, bool, (K, C, R, S), in memory of its own.
    """
    K, C, R, S = layer.shape
    # As R * S planes, which channels_last memory nearly is already; nothing is written through these views.
    score = _planes(weight_KCRS.detach()).abs().to(_working_dtype(weight_KCRS))
    left = _planes(alive_KCRS)
    if budget.in_window and R * S <= _SHORT:
        left = prune_smallest_planes(score, left, budget.in_window)
    elif budget.in_window:
        score_LN, left_LN = score.reshape(R * S, K * C).t(), left.reshape(R * S, K * C).t()
        left = prune_smallest(score_LN, left_LN, budget.in_window).t().reshape(R * S, K, C)
    if budget.kernels:
        groups = layer.groups
        as_number = left.to(score.dtype)
        strongest_KC, alive_KC = (score * as_number).amax(0), as_number.amax(0) > 0
        kept_GCK = prune_smallest(_by_channel(strongest_KC, groups), _by_channel(alive_KC, groups), budget.kernels)
        kept_KC = kept_GCK.reshape(groups, C, K // groups).transpose(1, 2).reshape(K, C)
        left = left & kept_KC
    left_KCRS = left.permute(1, 2, 0).reshape(K, C, R, S)
    return left_KCRS if budget.in_window or budget.kernels else left_KCRS.clone()


def _planes(x_KCRS: Tensor) -> Tensor:
    """(K, C, R, S) as (R * S, K, C)."""
    return x_KCRS.permute(2, 3, 0, 1).flatten(0, 1)


def _by_channel(x_KC: Tensor, groups: int) -> Tensor:
    """(K, C) to rows of competitors, (groups * C, K / groups)."""
    K, C = x_KC.shape
    return x_KC.reshape(groups, K // groups, C).transpose(1, 2).reshape(groups * C, K // groups).contiguous()


def _working_dtype(weight: Tensor) -> torch.dtype:
    return weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
