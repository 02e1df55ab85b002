"""How small would `compress` make a layer? Counted in one pass, without compressing anything."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from starfire_cli.formats.dtypes import dtype_of, words_of
from starfire_cli.formats.information import counts_bits, entropy_bits, log2_choose
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.stats import kept_in_kernels

# What a packed file takes beyond the bound is mostly its header: names, shapes, checksums (docs/inspect.md).
HEADER_A_TENSOR = 110


class Estimate(NamedTuple):
    """The fewest bytes a layer takes, and how many of its live values are NaN or infinite."""

    bound: float
    nonfinite: int


def estimate(layer: Layer, weight: Tensor, alive: Tensor) -> Estimate:
    """The least a layer takes, given the structure its mask has: mask entropy, exponent entropy, all other bits.

    As `compress` defines its bound (docs/compress.md); dead weights cost nothing but their place.
    """
    dtype = dtype_of(weight, layer.key)
    words = words_of(weight, dtype)
    live = int(np.count_nonzero(alive.numpy()))
    exponents = ((words << words.dtype.type(1)) >> words.dtype.type(dtype.bits - 8)).astype(np.uint8)
    if live < words.size:
        exponents = exponents[alive.contiguous().numpy().reshape(-1)]
    counts = np.bincount(exponents, minlength=256)
    value_bits = entropy_bits(counts) + live * (dtype.bits - 8)
    # Where the exponent has just these 8 bits, all ones mean NaN or infinity; other types are asked.
    eight = dtype.torch in (torch.float32, torch.bfloat16)
    nonfinite = int(counts[255]) if eight else int((~weight.float().isfinite() & alive).sum())
    return Estimate((mask_bits(layer, alive, live) + value_bits) / 8, nonfinite)


def mask_bits(layer: Layer, alive: Tensor, live: int) -> float:
    """The information in a mask, given the best of the structures it fits: weights, windows, or whole kernels."""
    if live == layer.weights:
        return 0.0
    bits = log2_choose(layer.weights, np.array([live]))
    if layer.kind == "linear":
        return bits
    kept_KC = kept_in_kernels(layer, alive)
    if layer.window > 1:
        bits = min(bits, log2_choose(layer.window, kept_KC) + counts_bits(kept_KC))
    if bool(((kept_KC == 0) | (kept_KC == layer.window)).all()):
        kernels_C = (kept_KC > 0).sum(0)
        bits = min(bits, log2_choose(layer.shape[0], kernels_C) + counts_bits(kernels_C))
    return bits
