"""Detects the structure of a mask from the mask alone: whole kernels, k of 9 in a window, tiles, or none."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.stats import LayerStats, kept_in_kernels

TILES = (4, 3, 2)  # the paper's n < 5, the largest first


def structure_of(layer: Layer, alive: Tensor, stats: LayerStats) -> str:
    """The strongest structure that every dead weight of the layer fits.

    "dense", "all dead"; "output channels", "input channels", "channels" (both); "ck" (whole kernels, equally many of
    each input channel), "kernels" (whole kernels); "window k of n", with "+ ck" or "+ kernels" where whole kernels
    are dead besides; "block n" (whole n x n tiles), "block n + unstructured"; "2 of 4 inputs"; "unstructured".
    """
    if stats.zeros == 0:
        return "dense"
    if stats.zeros == layer.weights:
        return "all dead"
    kept_KC = kept_in_kernels(layer, alive)
    dead_KC = kept_KC == 0
    whole = bool((dead_KC | (kept_KC == layer.window)).all())
    if whole and (channels := _channels(dead_KC, layer.groups)):
        return channels
    if layer.kind == "linear":
        return _tiles(dead_KC) or _two_of_four(layer, alive) or _mostly_tiles(dead_KC) or "unstructured"
    kernels = "" if not dead_KC.any() else "ck" if _balanced(dead_KC, layer.groups) else "kernels"
    if whole:
        unordered = layer.window == 1 and kernels == "kernels"  # single weights, here and there
        return (_two_of_four(layer, alive) or "unstructured") if unordered else kernels
    most = int(kept_KC.max())
    if bool((dead_KC | (kept_KC == most)).all()):
        return f"window {most} of {layer.window}{f' + {kernels}' if kernels else ''}"
    return _two_of_four(layer, alive) or "unstructured"


def _channels(dead_KC: NDArray[np.bool_], groups: int) -> str | None:
    """A name for dead weights that are whole channels; else None."""
    K, C = dead_KC.shape
    dead_GKC = dead_KC.reshape(groups, K // groups, C)
    rows_GK1 = dead_GKC.all(2, keepdims=True)
    columns_G1C = dead_GKC.all(1, keepdims=True)
    if not bool((dead_GKC == (rows_GK1 | columns_G1C)).all()):
        return None
    return "output channels" if not columns_G1C.any() else "channels" if rows_GK1.any() else "input channels"


def _balanced(dead_KC: NDArray[np.bool_], groups: int) -> bool:
    """Whether each input channel lost equally many of its kernels (Algorithm 1)."""
    K, C = dead_KC.shape
    counts = dead_KC.reshape(groups, K // groups, C).sum(1)
    return bool((counts == counts[0, 0]).all())


def _tiles(dead_OI: NDArray[np.bool_]) -> str | None:
    """A name for dead weights that are whole tiles; else None."""
    zeros = int(dead_OI.sum())
    return next((f"block {n}" for n in TILES if _in_whole_tiles(dead_OI, n) == zeros), None)


def _mostly_tiles(dead_OI: NDArray[np.bool_]) -> str | None:
    """A name for dead weights of which more lie in whole tiles than chance would have it; else None."""
    zeros = int(dead_OI.sum())
    chance = zeros / dead_OI.size
    for n in TILES:
        share = _in_whole_tiles(dead_OI, n) / zeros
        if share > 0.2 and share > 2 * chance ** (n * n - 1):
            return f"block {n} + unstructured"
    return None


def _in_whole_tiles(dead_OI: NDArray[np.bool_], n: int) -> int:
    """The number of dead weights in n x n tiles that are dead as a whole; tiles at the ragged edges are smaller."""
    O, I = dead_OI.shape
    rows, columns = np.arange(0, O, n), np.arange(0, I, n)
    whole = np.logical_and.reduceat(np.logical_and.reduceat(dead_OI, rows, axis=0), columns, axis=1)
    heights, widths = (np.minimum(n, end - starts) for end, starts in ((O, rows), (I, columns)))
    return int(heights @ whole.astype(np.int64) @ widths)


def _two_of_four(layer: Layer, alive: Tensor) -> str | None:
    """The 2:4 pattern of sparse tensor cores: of each four neighbouring inputs, two are alive."""
    K, C = layer.shape[:2]
    if C % 4:
        return None
    bits: NDArray[Any] = alive.contiguous().numpy().view(np.uint8).reshape(K, C // 4, 4, layer.window)
    return "2 of 4 inputs" if bool((bits.sum(2, dtype=np.uint8) == 2).all()) else None
