"""Cuts that several methods make, and the ranges of the options that they share."""

from __future__ import annotations

from functools import lru_cache

from starfire_cli.errors import BadOption
from starfire_cli.pruning.budget import Goal, pruned
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.units import Budget, Cut


@lru_cache(maxsize=1 << 12)  # asked for every shape at every step of an era, and equal cuts compare faster if the same
def windows(count: int) -> Cut:
    """A cut of `count` weights of every window."""
    return Cut("", "KC", count)


@lru_cache(maxsize=1 << 12)
def kernels(count: int) -> Cut:
    """A cut of `count` whole kernels of every input channel."""
    return Cut("RS", "C", count)


def window_cut(layer: Layer, threshold: float, max_nonzero: int | None, progress: float) -> Cut:
    """Weights of every window (Algorithm 3); the cap holds in 3 x 3 windows only."""
    cap = max_nonzero if layer.shape[2:] == (3, 3) else None
    return windows(pruned(layer.window, threshold, cap, progress))


def kernel_cut(layer: Layer, threshold: float) -> Cut:
    """Whole kernels of every input channel (Algorithm 1); in a group, its K / groups kernels compete."""
    return kernels(pruned(layer.shape[0] // layer.groups, threshold))


def kernel_cut_for_rest(layer: Layer, threshold: float, before: Cut) -> Cut:
    """Kernels of every input channel so that the layer reaches `threshold` after `before` of its windows.

    The share is q = (t - s) / (1 - s), where s of each window is gone (docs/method.md on Algorithm 4).
    """
    reached = before.count / layer.window
    return kernel_cut(layer, (threshold - reached) / (1 - reached) if threshold > reached else 0.0)


def pointwise_budget(layer: Layer, goal: Goal) -> Budget | None:
    """The ck rule for 1 x 1 convolutions, which have no windows; it would take all of a depthwise one."""
    return None if layer.depthwise else (kernel_cut(layer, goal.threshold),)


def tile_cut(layer: Layer, threshold: float, n: int) -> Cut:
    """Tiles of n x n weights of the layer by the sum of |w|; every output keeps its strongest."""
    tiles = Cut("", "", 0, reduce="sum", keep="K", tile=n).competitors(layer.shape)
    return Cut("", "", pruned(tiles, threshold), reduce="sum", keep="K", tile=n)


def weight_cut(layer: Layer, threshold: float) -> Cut:
    """Single weights of the layer; every output keeps its strongest."""
    return Cut("", "", pruned(layer.weights, threshold), keep="K")


def check_max_nonzero(max_nonzero: int | None) -> None:
    """Raises BadOption unless a 3 x 3 window can keep that many."""
    if max_nonzero is not None and not 1 <= max_nonzero <= 9:
        raise BadOption(f"max_nonzero={max_nonzero} is out of range; a 3x3 window keeps 1 to 9 weights")


def check_share(share: float) -> None:
    """Raises BadOption unless `share` is a fraction of 1."""
    if not 0 <= share <= 1:
        raise BadOption(f"share={share} is out of range; it is a part of the threshold, 0 to 1")


def check_tile(n: int) -> None:
    """Raises BadOption unless `n` is a tile side of the paper."""
    if not 1 <= n <= 4:
        raise BadOption(f"n={n} is out of range; a tile's side is 1 to 4")
