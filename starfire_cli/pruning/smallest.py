"""Selects the smallest of each row of competitors: exact counts, ties by index (docs/method.md)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from starfire_cli.pruning._threads import in_threads

_CHUNK = 1 << 16  # short rows that are worked on together
_MODERATE = 1 << 12
_FEW = 4


def prune_smallest(score_LN: Tensor, alive_LN: Tensor, count: int) -> Tensor:
    """Prune the `count` smallest of the N competitors in each of L rows; dead ones count and go first.

    Exactly max(count, dead already) are gone in each row. Ties go by index, the lower first.

    Args:
        score_LN: scores >= 0, floating, (L, N).
        alive_LN: what is still there, bool, (L, N).
        count: how many of each row must be gone, in [0, N].

    Returns:
        What is left, bool, (L, N), a subset of `alive_LN`.
    """
    n = score_LN.shape[-1]
    if count <= 0 or score_LN.numel() == 0:
        return alive_LN.clone()
    if count >= n:
        return torch.zeros_like(alive_LN)
    on_cpu = alive_LN.device.type == "cpu" and score_LN.dtype in (torch.float32, torch.float64)
    if on_cpu and alive_LN.is_contiguous():
        missing_L = count - n + alive_LN.view(torch.uint8).sum(-1, dtype=torch.int32)
        most = int(missing_L.max())
        if most <= 0:
            return alive_LN.clone()
        if most <= _FEW:
            return _one_by_one(score_LN, alive_LN, missing_L)
    key = torch.where(alive_LN, score_LN, -1.0)
    if (
        len(key) == 1 and on_cpu and alive_LN.is_contiguous()
    ):  # only what is alive: equals by the thousand slow the search down
        candidates = score_LN[alive_LN]
        cutoff = kth_smallest(candidates[None], count - (n - len(candidates)))
    else:
        cutoff = kth_smallest(key, count)
    gone = key <= cutoff
    # Where the cutoff is shared by several, `gone` holds too many: of those, only the first by index go.
    if bool((gone.sum(-1) != count).any()):
        tied = key == cutoff
        below = key < cutoff
        room = count - below.sum(-1, keepdim=True)
        gone = below | (tied & (tied.cumsum(-1) <= room))
    return alive_LN & ~gone


def _one_by_one(score_LN: Tensor, alive_LN: Tensor, missing_L: Tensor) -> Tensor:
    """`prune_smallest` where few are missing in each row, as at most steps of an era: repeated search for the minimum.

    On a CPU only: numpy finds a row's first minimum at the speed of memory.
    """
    key, left = torch.where(alive_LN, score_LN, torch.inf).numpy(), alive_LN.clone()
    missing = missing_L.numpy()
    for time in range(int(missing.max())):
        due = (missing > time).nonzero()[0]
        first = (key if len(due) == len(key) else key[due]).argmin(-1)
        key[due, first] = torch.inf
        left.numpy()[due, first] = False
    return left


def prune_smallest_planes(score_NKC: Tensor, alive_NKC: Tensor, count: int) -> Tensor:
    """`prune_smallest` for K * C short rows that stand as N planes, one for each place in a row.

    Each pair of planes is compared once, which for a handful of competitors is faster than any search. All is done in
    the scores' own type, which on a CPU is several times faster than to pass through bool.
    """
    N, K, C = score_NKC.shape
    left_NKC = torch.empty((N, K, C), dtype=torch.bool, device=score_NKC.device)
    rows = max(1, _CHUNK // max(1, C)) if score_NKC.device.type == "cpu" else max(1, K)
    for start in range(0, K, rows):
        piece = slice(start, start + rows)
        alive = alive_NKC[:, piece].to(score_NKC.dtype)
        key = torch.addcmul(alive - 1, score_NKC[:, piece], alive)  # -1 where dead
        # How many come before: at first all that stand behind, then each comparison corrects both sides.
        behind = torch.arange(N - 1, -1, -1, dtype=key.dtype, device=key.device)
        rank = behind[:, None, None].expand_as(key).contiguous()
        for apart in range(1, N):
            first = torch.le(key[:-apart], key[apart:], out=torch.empty_like(key[apart:]))  # of equals the lower index
            rank[apart:].add_(first)
            rank[:-apart].sub_(first)
        left_NKC[:, piece].copy_(rank.ge_(count).mul_(alive))
    return left_NKC


def kth_smallest(key_LN: Tensor, k: int) -> Tensor:
    """The k-th smallest (from 1) of each row, (L, 1)."""
    if key_LN.device.type == "cpu" and key_LN.dtype in (torch.float32, torch.float64):
        import numpy as np  # its vectorised sorts are several times faster than torch's kthvalue on a CPU

        def of(rows_LN: Tensor) -> Tensor:
            key = rows_LN.contiguous().numpy()
            # A full sort of a row of moderate length takes no longer than a partial one, and ties do not slow it down.
            ordered = np.sort(key, axis=-1) if key.shape[-1] <= _MODERATE else np.partition(key, k - 1, axis=-1)
            return torch.from_numpy(ordered[:, k - 1 : k].copy())

        rows = max(1, _CHUNK // key_LN.shape[1])
        pieces = [key_LN[start : start + rows] for start in range(0, len(key_LN), rows)]
        return torch.cat(in_threads([(piece.numel(), partial(of, piece)) for piece in pieces]))
    return key_LN.sort(dim=-1).values[:, k - 1 : k]  # CUDA's kthvalue refuses to work deterministically
