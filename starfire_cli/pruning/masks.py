"""Masks, however they were made: a dict from state-dict key to bool tensor, True = alive."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Masks = dict[str, Tensor]


def pack_bits(mask: Tensor) -> Tensor:
    """A mask as uint8, eight weights a byte in C order, the first in the lowest bit; padded with zeros."""
    flat = mask.detach().cpu().contiguous().reshape(-1).numpy()
    return torch.from_numpy(np.packbits(flat, bitorder="little"))


def unpack_bits(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_bits`. Raises ValueError where the number of bytes does not fit the shape."""
    count = int(np.prod(shape, dtype=np.int64))
    if bits.dtype != torch.uint8 or bits.ndim != 1 or bits.numel() != (count + 7) // 8:
        raise ValueError(f"{bits.numel()} bytes of mask do not fit shape {tuple(shape)}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count, bitorder="little").astype(bool)).reshape(shape)


def digest(masks: Mapping[str, Tensor]) -> str:
    """SHA-256 over the masks in order of their keys: key, shape, packed bits. Equal digests mean equal masks."""
    sha = hashlib.sha256()
    for key in sorted(masks):
        mask = masks[key]
        sha.update(f"{key}\0{'x'.join(map(str, mask.shape))}\0".encode())
        sha.update(pack_bits(mask).numpy().tobytes())
    return sha.hexdigest()


def masks_from_zeros(state: Mapping[str, Tensor], keys: list[str]) -> Masks:
    """Masks in which every weight that is exactly zero is dead."""
    return {key: state[key] != 0 for key in keys}


def disagreements(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Contradictions of masks and weights: key -> (dead but not zero, alive but zero), where either is not 0.

    The first is an error (a dead weight came back); the second is odd but legal (a live weight that happens to be 0).
    """
    found = {}
    for key, mask in masks.items():
        weight = state[key]
        zero = weight == 0
        counts = int((~mask & ~zero).sum()), int((mask & zero).sum())
        if any(counts):
            found[key] = counts
    return found


def apply_masks(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Write exact +0.0 over every dead weight, in place."""
    with torch.no_grad():
        for key, mask in masks.items():
            state[key].masked_fill_(~mask.to(state[key].device), 0)
