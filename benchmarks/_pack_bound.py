"""A lower bound on the bytes of a packed network, computed here and not by the package that is measured against it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

State = dict[str, Tensor]


def bound(state: State, masks: State) -> float:
    """Bytes: mask entropy given its structure + per-layer entropy of the exponents + 24 bits for each live value."""
    return sum(layer_bound(state[key].numpy(), masks[key].numpy() if key in masks else None) for key in state) / 8


def layer_bound(weight: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None) -> float:
    """Bits of one tensor."""
    live = weight.reshape(-1) if mask is None else weight[mask]
    if live.dtype != np.float32:
        return 8.0 * live.nbytes
    bits = 24.0 * live.size + entropy(np.unique(live.view(np.uint32) >> 23 & 255, return_counts=True)[1])
    if mask is None:
        return bits
    ways = [choose(mask.size, int(mask.sum()))]
    windows = mask.reshape(mask.shape[0], mask.shape[1], -1)
    n, kept = windows.shape[2], windows.sum(2)
    ways.append(sum(choose(n, int(k)) * int((kept == k).sum()) for k in np.unique(kept)) + spread(kept))
    if ((kept == 0) | (kept == n)).all():
        kernels = (kept > 0).sum(0)
        ways.append(sum(choose(mask.shape[0], int(k)) for k in kernels) + spread(kernels))
    return bits + min(ways)


def choose(n: int, k: int) -> float:
    """log2 C(n, k)."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def entropy(counts: np.ndarray[Any, Any]) -> float:
    """Total bits of a sequence with these counts."""
    share = counts / counts.sum()
    return float(-(counts * np.log2(share)).sum())


def spread(values: np.ndarray[Any, Any]) -> float:
    """Total bits to say each of `values`."""
    return entropy(np.unique(values, return_counts=True)[1])
