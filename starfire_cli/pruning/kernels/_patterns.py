"""The patterns that have kernels of their own, as plain counts: windows and kernels, tiles and single weights."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.units import Budget, Cut


class ConvCounts(NamedTuple):
    """The weights due of a convolution: `in_window` of every window, then `kernels` of every input channel.

    Where `across`, the kernels of a depthwise convolution compete as if they read one channel.
    """

    in_window: int
    kernels: int
    across: bool


class LinearCounts(NamedTuple):
    """The weights due of a linear layer: `tiles` of `tile` x `tile` weights, then single ones up to `weights` in all.

    Every output keeps its strongest tile and its strongest weight.
    """

    tiles: int
    weights: int
    tile: int


Counts = ConvCounts | LinearCounts


def counts_of(layer: Layer, budget: Budget) -> Counts | None:
    """A layer's budget as counts; None if it follows none of the patterns."""
    counts = read_counts(budget)
    if isinstance(counts, LinearCounts):
        return counts if layer.kind == "linear" else None
    if counts is None or layer.kind == "linear" or (counts.across and layer.shape[1] > 1):
        return None
    return counts


def groups_of(layer: Layer, counts: Counts) -> int:
    """The number of groups in which a layer's kernels compete."""
    return 1 if isinstance(counts, ConvCounts) and counts.across else layer.groups


@lru_cache(maxsize=1 << 12)  # asked for every layer at every step of an era
def read_counts(budget: Budget) -> Counts | None:
    """A budget as counts, for layers of which `counts_of` knows one of the same cuts."""
    forms = tuple(replace(cut, count=0, tile=1 if cut.reduce == "sum" else cut.tile) for cut in budget)
    count = {form: cut.count for form, cut in zip(forms, budget, strict=True)}
    if forms in _CONVOLUTION:
        return ConvCounts(count.get(_WINDOWS, 0), count.get(_KERNELS, 0) + count.get(_ACROSS, 0), _ACROSS in count)
    if forms in _LINEAR:
        return LinearCounts(count.get(_TILES, 0), count.get(_WEIGHTS, 0), budget[0].tile)
    return None


_WINDOWS, _KERNELS, _ACROSS = Cut("", "KC", 0), Cut("RS", "C", 0), Cut("RS", "", 0)
_TILES, _WEIGHTS = Cut("", "", 0, reduce="sum", keep="K"), Cut("", "", 0, keep="K")
_CONVOLUTION = ((_WINDOWS,), (_KERNELS,), (_ACROSS,), (_WINDOWS, _KERNELS), (_WINDOWS, _ACROSS))
_LINEAR = ((_TILES,), (_WEIGHTS,), (_TILES, _WEIGHTS))
