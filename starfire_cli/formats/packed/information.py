"""The information content of a layer in bytes: the lower bound that `compress` compares its sizes with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def log2_choose(n: int, k: NDArray[Any]) -> float:
    """Sum over k of log2 C(n, k): the bits that identify each subset of k of n."""
    values, times = np.unique(k, return_counts=True)
    lg = math.lgamma
    nats = [lg(n + 1) - lg(v + 1) - lg(n - v + 1) for v in values.tolist()]
    return float(np.dot(nats, times)) / math.log(2)


def entropy_bits(counts: NDArray[Any]) -> float:
    """Bits that a sequence with these symbol counts takes when its frequencies are known: n times its entropy."""
    used = counts[counts > 0].astype(np.float64)
    return float((used * np.log2(used.sum() / used)).sum()) if used.size else 0.0


def counts_bits(values: NDArray[Any]) -> float:
    """`entropy_bits` of small whole numbers >= 0."""
    return entropy_bits(np.bincount(values.ravel())) if values.size else 0.0
