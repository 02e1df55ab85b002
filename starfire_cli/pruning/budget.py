"""How many units go, and which: the counting rule and the tie-break (paper, Algorithms 1 and 3; docs/method.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# n * t in floating point may land a hair above a whole number (0.6 * 5 = 3.0000000000000004): never prune one more. The
# hair grows with n (0.56 * 10^8 is 1.5e-8 off), so the slack does too.
_SLACK = 1e-12

_CHUNK = 1 << 16  # short rows that are worked on together: they stay in the cache, and two cores share them
_MODERATE = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Where pruning should stand now.

    Args:
        target: the final sparsity threshold, in [0, 1).
        progress: how much of the way there is due now, in [0, 1], the era's ramp already applied.
    """

    target: float
    progress: float = 1.0

    @property
    def threshold(self) -> float:
        """The sparsity threshold t now."""
        return self.target * self.progress


class ConvBudget(NamedTuple):
    """What must be gone in a convolution: `in_window` weights in every R x S window, `kernels` per input channel."""

    in_window: int
    kernels: int


class LinearBudget(NamedTuple):
    """What must be gone in a linear layer: `tiles` of `tile` x `tile` weights, and `weights` in all."""

    tiles: int
    weights: int
    tile: int


def pruned(n: int, threshold: float, max_nonzero: int | None = None, progress: float = 1.0) -> int:
    """How many of `n` competing units are pruned at `threshold` (Algorithms 1 and 3, `cutoff_index`).

    The larger of ceil(n * threshold) and, with a cap, n - max_nonzero; the cap comes in with `progress`.
    """
    slack = n * _SLACK
    by_threshold = math.ceil(n * threshold - slack)
    by_cap = 0 if max_nonzero is None else math.ceil((n - max_nonzero) * progress - slack)
    return min(n, max(0, by_threshold, by_cap))


def prune_smallest(score_LN: Tensor, alive_LN: Tensor, count: int) -> Tensor:
    """Of the N competitors in each of L rows, the `count` that go first; what is dead already counts and goes first.

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
    key = torch.where(alive_LN, score_LN, -1.0)
    cutoff = _kth_smallest(key, count)
    gone = key <= cutoff
    # Where the cutoff is shared by several, `gone` holds too many: of those, only the first by index go.
    if bool((gone.sum(-1) != count).any()):
        tied = key == cutoff
        below = key < cutoff
        room = count - below.sum(-1, keepdim=True)
        gone = below | (tied & (tied.cumsum(-1) <= room))
    return alive_LN & ~gone


def prune_smallest_planes(score_NL: Tensor, alive_NL: Tensor, count: int) -> Tensor:
    """`prune_smallest` for many short rows that stand as planes, (N, L): one for each place in the row.

    Each pair of planes is compared once, which for a handful of competitors is faster than any search.
    """
    N, L = score_NL.shape
    left_NL = torch.empty_like(alive_NL, memory_format=torch.contiguous_format)
    step = _CHUNK if score_NL.device.type == "cpu" else max(1, L)
    for start in range(0, L, step):
        piece = slice(start, start + step)
        key = torch.where(alive_NL[:, piece], score_NL[:, piece], -1.0)
        # Who comes before: at first all that stand behind, then each comparison corrects both sides.
        rank = torch.arange(N - 1, -1, -1, dtype=torch.uint8, device=key.device)[:, None].repeat(1, key.shape[1])
        first = torch.empty_like(key[0], dtype=torch.bool)
        as_number = first.view(torch.uint8)
        for i in range(1, N):
            for m in range(i):
                torch.le(key[m], key[i], out=first)
                rank[i].add_(as_number)
                rank[m].sub_(as_number)
        torch.ge(rank, count, out=left_NL[:, piece])
    return left_NL.logical_and_(alive_NL)


def _kth_smallest(key_LN: Tensor, k: int) -> Tensor:
    """The k-th smallest (from 1) of each row, (L, 1)."""
    if key_LN.device.type == "cpu" and key_LN.dtype in (torch.float32, torch.float64):
        import numpy as np  # its vectorised sorts are several times faster than torch's kthvalue on a CPU

        key = key_LN.contiguous().numpy()
        # A full sort of a row of moderate length takes no longer than a partial one, and ties do not slow it down.
        ordered = np.sort(key, axis=-1) if key.shape[-1] <= _MODERATE else np.partition(key, k - 1, axis=-1)
        return torch.from_numpy(ordered[:, k - 1 : k].copy())
    return key_LN.kthvalue(k, dim=-1, keepdim=True).values
