"""Prunes a few weights of large layers in numpy, in a fraction of the time of `units`: the usual case at a step of an
era.

Convolutions stand as (K, R, S, C) or (K, R * S, C), which channels_last memory is already. Loops are over whole layers
or large pieces: threads wait for one another each time they enter or leave numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from starfire_cli.pruning.kernels._interface import NAN, MaskJob
from starfire_cli.pruning.kernels._patterns import ConvCounts, LinearCounts, counts_of, groups_of
from starfire_cli.pruning.kernels.cpu.select import Array, few, magnitudes, pieces, smallest, unsigned

_ROUNDS = 4  # weights of a window that are looked for one by one; for more, comparing all pairs is faster
_BYTE = 127  # of a window's weights, what a signed byte can count


def prune_few(job: MaskJob) -> int | None:
    """Bring a layer down to its budget, alive and all tensors, in one thread; returns its count as `Kernels.prune`.

    None where more is due than is worth it, or nothing here knows how. The layer is then as it was, or on its way: what
    died would have died in any case.
    """
    weight, counts = job.weight, counts_of(job.layer, job.budget)
    if counts is None or weight.dtype not in (torch.float32, torch.float64) or not weight.numel():
        return None
    tensors, alive = [_bits(x) for x in (weight, *job.others)], _bits(job.alive)
    if not _finite(weight.detach().numpy()):
        return NAN
    if isinstance(counts, LinearCounts):
        done = not counts.tiles and _single_weights(tensors, alive, counts.weights)
    else:
        done = _windows(tensors, alive, counts) and _kernels(tensors, alive, counts, groups_of(job.layer, counts))
    return alive.size - int(np.count_nonzero(alive)) if done else None


def bit_view(tensor: Tensor) -> Tensor:
    """A view of a tensor's bits as signed integers of the same size."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(kinds[tensor.element_size()])


def cost(job: MaskJob) -> int:
    """A relative estimate of the time: one for each weight that is read, three for each kernel that is ranked."""
    shape = job.weight.shape
    return job.weight.numel() + 3 * shape[0] * shape[1]


def _windows(tensors: Sequence[Array], alive_KRSC: Array, counts: ConvCounts) -> bool:
    K, R, S, C = alive_KRSC.shape
    if not counts.in_window:
        return True
    if R * S > _BYTE:
        return False
    bits_KWC, alive_KWC = (x.reshape(K, R * S, C) for x in (tensors[0], alive_KRSC))
    # Each window has `in_window` dead or more once it is done.
    missing_KC = np.add.reduce(alive_KWC, axis=1, dtype=np.int8) - np.int8(max(0, R * S - counts.in_window))
    most = int(missing_KC.max())
    if most <= 0 or most > _ROUNDS:
        return most <= 0
    for piece in pieces(K, R * S * C):
        left_KWC = alive_KWC[piece].copy()
        key_KWC = unsigned(magnitudes(bits_KWC[piece], left_KWC))
        for time in range(most):
            due_KC = missing_KC[piece] > time
            gone_KWC = key_KWC == key_KWC.min(1, keepdims=True)
            gone_KWC &= due_KC[:, None]
            if np.count_nonzero(gone_KWC) > np.count_nonzero(due_KC):  # of equals only the first goes
                for gone_KC in gone_KWC.transpose(1, 0, 2):
                    gone_KC &= due_KC
                    due_KC ^= gone_KC
            left_KWC ^= gone_KWC.view(np.int8)
            if time + 1 < most:
                key_KWC |= -gone_KWC.astype(key_KWC.dtype)
        left_KRSC = left_KWC.reshape(-1, R, S, C)
        alive_KRSC[piece] = left_KRSC
        gates = {size: -left_KRSC.astype(f"i{size}") for size in {x.dtype.itemsize for x in tensors}}
        for x_KRSC in tensors:
            x_KRSC[piece] &= gates[x_KRSC.dtype.itemsize]
    return True


def _kernels(tensors: Sequence[Array], alive_KRSC: Array, counts: ConvCounts, groups: int) -> bool:
    K, R, S, C = alive_KRSC.shape
    if not counts.kernels:
        return True
    if groups > 1:
        return False
    bits_KWC, alive_KWC = (x.reshape(K, R * S, C) for x in (tensors[0], alive_KRSC))
    alive_KC = alive_KWC.max(1) if R * S > 1 else alive_KWC[:, 0]
    living_C = np.add.reduce(alive_KC, axis=0, dtype=np.min_scalar_type(-K - 1)).astype(np.int64)
    wanted_C = np.maximum(0, living_C - max(0, K - counts.kernels))
    most = int(wanted_C.max())
    if not most or not few(most, K):
        return not most
    key_KC = np.empty((K, C), bits_KWC.dtype)
    for piece in pieces(K, R * S * C):
        strongest_KC = (bits_KWC[piece] & np.iinfo(bits_KWC.dtype).max).max(1) if R * S > 1 else bits_KWC[piece, 0]
        magnitudes(strongest_KC, alive_KC[piece], out=key_KC[piece])  # of what lives: dead weights are 0
    k, c = np.divmod(smallest(unsigned(key_KC), wanted_C), C)
    for x_KRSC in (alive_KRSC, *tensors):
        x_KRSC[k, :, :, c] = 0
    return True


def _single_weights(tensors: Sequence[Array], alive_OI: Array, count: int) -> bool:
    bits_OI, (O, I) = tensors[0], alive_OI.shape
    guarded = np.count_nonzero(alive_OI.max(1))  # the strongest of each neuron that has any
    wanted = np.array([min(count, O * I - guarded) - O * I + np.count_nonzero(alive_OI)])
    if wanted[0] <= 0 or not few(int(wanted[0]), O * I):
        return bool(wanted[0] <= 0)
    key_OI = np.empty((O, I), bits_OI.dtype)
    for piece in pieces(O, I):
        key = magnitudes(bits_OI[piece], alive_OI[piece], out=key_OI[piece])
        row, column = np.divmod(np.flatnonzero(key == key.max(1, keepdims=True)), I)
        last = np.zeros(len(key), np.int64)
        last[row] = column  # of equals the last is written last
        key[np.arange(len(key)), last] = -1  # out of the competition, as if dead
    at = np.divmod(smallest(unsigned(key_OI).reshape(-1, 1), wanted), I)
    for x_OI in (alive_OI, *tensors):
        x_OI[at] = 0
    return True


def _finite(weight: Array) -> bool:
    return bool(-np.inf < weight.min() and weight.max() < np.inf)  # false of NaN, too


def _bits(tensor: Tensor) -> Array:
    """As `bit_view`; a convolution's as (K, R, S, C)."""
    bits = bit_view(tensor.detach())
    numbers: Array = (bits if bits.ndim == 2 else bits.permute(0, 2, 3, 1)).numpy()
    return numbers
