"""Estimates the sizes that `compress` would reach without compressing: the entropy bound and the file in bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from starfire_cli.errors import StarfireError
from starfire_cli.formats.packed import codebook, encoding, live_values
from starfire_cli.formats.packed.dtypes import Dtype, dtype_of, words_of
from starfire_cli.formats.packed.streams import Bits
from starfire_cli.pruning.ties import distinct

FOR_READERS = 0.005  # of the file may be spent on leaving never-pruned weights readable by any safetensors reader
_MORE = 1.001  # a layer's bytes over its bound, measured by benchmarks/estimate.py
_EACH = 25  # bytes of alphabets and counts that a layer takes beside
_FIXED = 330  # bytes of a header that has no tensors: format, version, checksums, the digest of the masks
_LINE: dict[str, Any] = {"dtype": "F32", "shape": [], "encoding": "unstructured", "live": 0, "crc32": "00000000"}


class Estimate(NamedTuple):
    """The fewest bytes a tensor takes, and how many of its live values are NaN or infinite."""

    bound: float
    nonfinite: int


def estimate(key: str, tensor: Tensor, mask: Tensor | None) -> Estimate:
    """The lower bound for a tensor: mask entropy given its structure, exponent entropy, all other bits.

    With few different values, the entropy of their numbers in a codebook instead, where that is less. What `compress`
    measures its files against (docs/compress.md); dead weights cost nothing but their place.

    Args:
        key: of the tensor, for errors.
        tensor: any that can be packed.
        mask: True where a weight is alive; None where all zeros are just zeros.

    Raises StarfireError for a type that cannot be packed.
    """
    dtype = dtype_of(tensor, key)
    words = words_of(tensor, dtype)
    alive: Bits | None = None
    if mask is not None:
        alive = mask.detach().cpu().contiguous().reshape(-1).numpy()
    elif tensor.ndim >= 2:
        alive = zeros_apart(words, dtype)
    bits = 0.0
    if alive is not None:
        bits = encoding.bound_bits(alive.reshape(encoding.grid(tuple(tensor.shape))))
        alive = None if alive.all() else alive if dtype.words == 1 else alive.repeat(dtype.words)
    counts = live_values.top_counts(words, dtype, alive)
    least = live_values.bound_of_counts(counts, dtype)
    if (mask is not None or tensor.ndim >= 2) and (found := codebook.find(words, dtype, alive)) is not None:
        least = min(least, found.bound_bits(dtype))
    return Estimate((bits + least) / 8, _nonfinite(tensor, mask, counts))


def zeros_apart(words: Any, dtype: Dtype) -> Bits:
    """True where an unmasked tensor is not +0: its zeros are cheaper stored by place than as values."""
    nonzero: Bits = np.not_equal(words, 0)
    if dtype.words == 1:
        return nonzero
    return np.logical_or(nonzero[::2], nonzero[1::2])


def bounds_of(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, float]:
    """The fewest bytes that each tensor takes, tied ones once; what cannot be packed takes what it takes in memory."""
    found = {}
    for key, tensor in distinct(state).items():
        try:
            found[key] = estimate(key, tensor, masks.get(key)).bound
        except StarfireError:
            found[key] = float(tensor.nbytes)
    return found


def packed_bytes(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], meta: Mapping[str, Any], bounds: Mapping[str, float]
) -> int:
    """The estimated size of a packed file: layers beyond their bounds, plain tensors, the header.

    Args:
        state: of the checkpoint.
        masks: likewise.
        meta: likewise.
        bounds: of `bounds_of`.
    """
    took = {key: _MORE * bounds[key] + _EACH for key in bounds}
    took |= {key: state[key].nbytes for key in bounds if key not in masks and state[key].ndim < 2}
    matrices = [key for key in bounds if key not in masks and state[key].ndim >= 2]
    room = FOR_READERS * sum(took[key] for key in bounds if key in masks or key in matrices)
    plain = {key for key in bounds if key not in masks and key not in matrices}
    for key in sorted(matrices, key=lambda key: state[key].nbytes - took[key]):
        room -= state[key].nbytes - took[key]
        if room < 0:
            break
        took[key] = state[key].nbytes
        plain.add(key)
    total = math.ceil(sum(took.values()))
    header = {key: {"dtype": "F32", "shape": list(state[key].shape), "data_offsets": [total, total]} for key in plain}
    packed = [key for key in took if key not in plain]
    header |= {f"{key}.packed": {"dtype": "U8", "shape": [total], "data_offsets": [total, total]} for key in packed}
    layers = {key: _LINE | {"shape": list(state[key].shape), "live": state[key].numel()} for key in packed}
    text = [_json(header), *([json.dumps(_json(part)) for part in (layers, dict(meta))]), "0" * 8 * len(plain)]
    return total + sum(map(len, text)) + _FIXED


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _nonfinite(tensor: Tensor, mask: Tensor | None, counts: Any) -> int:
    # Where the exponent has just 8 bits, all ones mean NaN or infinity; other types are asked.
    if tensor.dtype in (torch.float32, torch.bfloat16):
        return int(counts[255])
    if not tensor.is_floating_point():
        return 0
    wrong = ~tensor.float().isfinite()
    return int((wrong if mask is None else wrong & mask).sum())
