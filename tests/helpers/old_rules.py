"""The masks of today's methods as starfire computed them before units and cuts: the oracle of `test_old_rules.py`.

Copied from this repository's own history (commit b8aae9d: pruning/budget.py, conv/ and linear/), with nothing changed
but that it stands in one file, in one thread and without registration. It is not to be improved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from starfire_cli.pruning.layers import Layer

# n * t in floating point may land a hair above a whole number (0.6 * 5 = 3.0000000000000004): never prune one more. The
# hair grows with n (0.56 * 10^8 is 1.5e-8 off), so the slack does too.
_SLACK = 1e-12

_CHUNK = 1 << 16  # short rows that are worked on together
_MODERATE = 1 << 12
_FEW = 4


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
        cutoff = _kth_smallest(candidates[None], count - (n - len(candidates)))
    else:
        cutoff = _kth_smallest(key, count)
    gone = key <= cutoff
    # Where the cutoff is shared by several, `gone` holds too many: of those, only the first by index go.
    if bool((gone.sum(-1) != count).any()):
        tied = key == cutoff
        below = key < cutoff
        room = count - below.sum(-1, keepdim=True)
        gone = below | (tied & (tied.cumsum(-1) <= room))
    return alive_LN & ~gone


def _one_by_one(score_LN: Tensor, alive_LN: Tensor, missing_L: Tensor) -> Tensor:
    """`prune_smallest` where few are missing in each row, as at most steps of an era: the smallest, again and again.

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


def _kth_smallest(key_LN: Tensor, k: int) -> Tensor:
    """The k-th smallest (from 1) of each row, (L, 1)."""
    if key_LN.device.type == "cpu" and key_LN.dtype in (torch.float32, torch.float64):

        def of(rows_LN: Tensor) -> Tensor:
            key = rows_LN.contiguous().numpy()
            # A full sort of a row of moderate length takes no longer than a partial one, and ties do not slow it down.
            ordered = np.sort(key, axis=-1) if key.shape[-1] <= _MODERATE else np.partition(key, k - 1, axis=-1)
            return torch.from_numpy(ordered[:, k - 1 : k].copy())

        rows = max(1, _CHUNK // key_LN.shape[1])
        pieces = [key_LN[start : start + rows] for start in range(0, len(key_LN), rows)]
        return torch.cat([of(piece) for piece in pieces])
    return key_LN.sort(dim=-1).values[:, k - 1 : k]  # CUDA's kthvalue refuses to work deterministically


_SHORT = 9  # weights of a window that are compared pair by pair


def window_count(layer: Layer, threshold: float, max_nonzero: int | None, progress: float) -> int:
    """Weights pruned in each window at `threshold` (Algorithm 3); the cap holds in 3 x 3 windows only."""
    cap = max_nonzero if layer.shape[2:] == (3, 3) else None
    return pruned(layer.window, threshold, cap, progress)


def kernel_count(layer: Layer, threshold: float) -> int:
    """Kernels pruned of each input channel at `threshold` (Algorithm 1); in a group, its K / groups kernels compete."""
    return pruned(layer.shape[0] // layer.groups, threshold)


def kernels_for_rest(layer: Layer, threshold: float, in_window: int) -> int:
    """Kernels pruned of each input channel so that the layer reaches `threshold` after `in_window` went everywhere.

    The share is q = (t - s) / (1 - s) with s = in_window / (R * S) (docs/method.md on Algorithm 4).
    """
    reached = in_window / layer.window
    return kernel_count(layer, (threshold - reached) / (1 - reached)) if threshold > reached else 0


def conv_mask(layer: Layer, weight_KCRS: Tensor, alive_KCRS: Tensor, budget: ConvBudget) -> Tensor:
    """Window pruning first, then whole kernels on what is left; either part may be zero.

    A kernel's score is the largest |w| that is alive in it; a dead kernel goes before any live one.
    Returns what is left, bool, (K, C, R, S), in memory of its own.
    """
    K, C, R, S = layer.shape
    # As R * S planes, which channels_last memory nearly is already; nothing is written through these views.
    score = _planes(weight_KCRS.detach()).abs().to(_working_dtype(weight_KCRS))
    left = _planes(alive_KCRS)
    if budget.in_window and R * S <= _SHORT:
        left = prune_smallest_planes(score, left, budget.in_window)
    elif budget.in_window:
        score_LN, left_LN = score.reshape(R * S, K * C).t(), left.reshape(R * S, K * C).t()
        left = prune_smallest(score_LN, left_LN, budget.in_window).t().reshape(R * S, K, C)
    if budget.kernels:
        groups = layer.groups
        as_number = left.to(score.dtype)
        strongest_KC, alive_KC = (score * as_number).amax(0), as_number.amax(0) > 0
        kept_GCK = prune_smallest(_by_channel(strongest_KC, groups), _by_channel(alive_KC, groups), budget.kernels)
        kept_KC = kept_GCK.reshape(groups, C, K // groups).transpose(1, 2).reshape(K, C)
        left = left & kept_KC
    left_KCRS = left.permute(1, 2, 0).reshape(K, C, R, S)
    return left_KCRS if budget.in_window or budget.kernels else left_KCRS.clone()


def _planes(x_KCRS: Tensor) -> Tensor:
    """(K, C, R, S) as (R * S, K, C)."""
    return x_KCRS.permute(2, 3, 0, 1).flatten(0, 1)


def _by_channel(x_KC: Tensor, groups: int) -> Tensor:
    """(K, C) to rows of competitors, (groups * C, K / groups)."""
    K, C = x_KC.shape
    return x_KC.reshape(groups, K // groups, C).transpose(1, 2).reshape(groups * C, K // groups).contiguous()


def _working_dtype(weight: Tensor) -> torch.dtype:
    return weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32


def tiles_of(layer: Layer, tile: int) -> tuple[int, int]:
    """Rows and columns of `tile` x `tile` tiles; those at the ragged edges are smaller."""
    O, I = layer.shape
    return -(-O // tile), -(-I // tile)


def linear_mask(layer: Layer, weight_OI: Tensor, alive_OI: Tensor, budget: LinearBudget) -> Tensor:
    """Whole tiles first (score: sum |w|), then single weights of what is left, `budget.weights` gone in all.

    Every output neuron keeps its strongest weight, and of the tiles that hold weights of it the strongest (paper,
    section 2.1.2: every output neuron is influenced by the input); the next smallest elsewhere goes in its place.
    Returns what is left, bool, (O, I).
    """
    O, I = layer.shape
    score_OI = weight_OI.detach().abs().to(torch.float64 if weight_OI.dtype == torch.float64 else torch.float32)
    score_OI = torch.where(alive_OI, score_OI, torch.zeros_like(score_OI))
    left_OI = alive_OI
    if budget.tiles:
        n = budget.tile
        rows, columns = tiles_of(layer, n)
        edges = (0, columns * n - I, 0, rows * n - O)
        # Summed in float64, so that two tiles whose weights differ compare as they should.
        score_T = pad(score_OI.double(), edges).reshape(rows, n, columns, n).sum((1, 3))
        alive_NT = pad(left_OI, edges).reshape(rows * n, columns, n).any(-1)  # by neuron and tile
        guard_NT = _strongest(score_T.repeat_interleave(n, 0), alive_NT)
        alive_T, guard_T = (x.reshape(rows, n, columns).any(1) for x in (alive_NT, guard_NT))
        kept_T = _prune_but(guard_T, score_T, alive_T, budget.tiles)
        left_OI = left_OI & kept_T.repeat_interleave(n, 0).repeat_interleave(n, 1)[:O, :I]
    if budget.weights:
        left_OI = _prune_but(_strongest(score_OI, left_OI), score_OI, left_OI, budget.weights)
    return left_OI.clone(memory_format=torch.contiguous_format)


def _strongest(score_RN: Tensor, alive_RN: Tensor) -> Tensor:
    """The live one of the highest score in each row, of equals the last; none in a row that is dead. Bool, (R, N)."""
    key_RN = torch.where(alive_RN, score_RN, -1.0)
    last_R1 = score_RN.shape[1] - 1 - key_RN.flip(1).argmax(1, keepdim=True)
    return torch.zeros_like(alive_RN).scatter_(1, last_R1, True) & alive_RN


def _prune_but(guard_RN: Tensor, score_RN: Tensor, alive_RN: Tensor, count: int) -> Tensor:
    """The `count` smallest of all rows together go, but never what `guard_RN` holds."""
    count = min(count, guard_RN.numel() - int(guard_RN.sum()))
    guarded = torch.where(guard_RN, torch.inf, score_RN)
    return prune_smallest(guarded.reshape(1, -1), alive_RN.reshape(1, -1), count).reshape(guard_RN.shape)


@dataclass(frozen=True, kw_only=True)
class Window:
    """The smallest weights of each window go; 1 x 1 convolutions follow the ck rule."""

    max_nonzero: int | None = None

    def budget(self, layer: Layer, goal: Goal) -> ConvBudget | None:
        if layer.kind == "pointwise":  # a depthwise one is all its channels have: ck would take every weight
            return None if layer.depthwise else ConvBudget(0, kernel_count(layer, goal.threshold))
        return ConvBudget(window_count(layer, goal.threshold, self.max_nonzero, goal.progress), 0)


@dataclass(frozen=True, kw_only=True)
class CK:
    """For each input channel, the kernels whose largest weight is smallest go.

    A depthwise kernel is all its channel has, so depthwise layers stay dense.
    """

    depthwise: bool = False

    def budget(self, layer: Layer, goal: Goal) -> ConvBudget | None:
        if layer.depthwise and not self.depthwise:
            return None
        return ConvBudget(0, kernel_count(self.seen(layer), goal.threshold))

    def seen(self, layer: Layer) -> Layer:
        """A depthwise layer, if it is to be pruned at all, as K kernels that read one channel."""
        return replace(layer, groups=1) if layer.depthwise else layer


@dataclass(frozen=True, kw_only=True)
class Intra:
    """Windows lose a share of the threshold, whole kernels the rest; 1 x 1 convolutions follow the ck rule."""

    share: float = 0.5
    max_nonzero: int | None = None

    def budget(self, layer: Layer, goal: Goal) -> ConvBudget | None:
        if layer.kind == "pointwise":  # a depthwise one is all its channels have: ck would take every weight
            return None if layer.depthwise else ConvBudget(0, kernel_count(layer, goal.threshold))
        if layer.depthwise:  # no whole depthwise kernel goes, so the windows take all of it
            return ConvBudget(window_count(layer, goal.threshold, self.max_nonzero, goal.progress), 0)
        now, final = self._counts(layer, goal), self._counts(layer, replace(goal, progress=1.0))
        # Each time the windows lose one more weight the kernels' share falls back, but the dead stay dead: without the
        # bound, kernels that went early would carry the layer past its target.
        return ConvBudget(now.in_window, min(now.kernels, final.kernels))

    def _counts(self, layer: Layer, goal: Goal) -> ConvBudget:
        in_window = window_count(layer, self.share * goal.threshold, self.max_nonzero, goal.progress)
        return ConvBudget(in_window, kernels_for_rest(layer, goal.threshold, in_window))


@dataclass(frozen=True, kw_only=True)
class Inter:
    """First one kind of pruning, then the other."""

    order: str = "ck-window"
    split: float = 0.5
    share: float = 0.5
    max_nonzero: int | None = None

    def budget(self, layer: Layer, goal: Goal) -> ConvBudget | None:
        if layer.kind == "pointwise" or layer.depthwise:  # only one rule applies, so there is nothing to put in phases
            return self._intra().budget(layer, goal)
        final = self._intra().budget(layer, replace(goal, progress=1.0))
        assert final is not None
        early, late = min(1.0, goal.progress / self.split), max(0.0, (goal.progress - self.split) / (1 - self.split))
        of_kernels, of_window = (early, late) if self.order == "ck-window" else (late, early)
        return ConvBudget(pruned(final.in_window, of_window), pruned(final.kernels, of_kernels))

    def _intra(self) -> Intra:
        return Intra(share=self.share, max_nonzero=self.max_nonzero)


@dataclass(frozen=True, kw_only=True)
class Fine:
    """The smallest weights of the layer go; every output neuron keeps at least one."""

    def budget(self, layer: Layer, goal: Goal) -> LinearBudget | None:
        return LinearBudget(tiles=0, weights=pruned(layer.weights, goal.threshold), tile=1)


@dataclass(frozen=True, kw_only=True)
class Block:
    """The tiles with the smallest sum of |w| go; in every row of tiles one stays."""

    n: int = 4

    def budget(self, layer: Layer, goal: Goal) -> LinearBudget | None:
        return LinearBudget(tiles=pruned(math.prod(tiles_of(layer, self.n)), goal.threshold), weights=0, tile=self.n)


@dataclass(frozen=True, kw_only=True)
class TwoTier:
    """Tiles go for a share of the threshold, then single weights until the layer reaches it."""

    n: int = 4
    share: float = 0.5

    def budget(self, layer: Layer, goal: Goal) -> LinearBudget | None:
        tiles = pruned(math.prod(tiles_of(layer, self.n)), self.share * goal.threshold)
        return LinearBudget(tiles=tiles, weights=pruned(layer.weights, goal.threshold), tile=self.n)


METHODS: dict[str, type] = {
    "window": Window,
    "ck": CK,
    "intra": Intra,
    "inter": Inter,
    "fine": Fine,
    "block": Block,
    "two-tier": TwoTier,
}


def old_mask(method: object, layer: Layer, weight: Tensor, alive: Tensor, goal: Goal) -> Tensor:
    """What is left of `alive` at `goal`; all of it where the method leaves the layer alone."""
    budget = method.budget(layer, goal)  # type: ignore[attr-defined]
    if budget is None:
        return alive.clone()
    seen = method.seen(layer) if isinstance(method, CK) else layer
    rule: Callable[..., Tensor] = linear_mask if layer.kind == "linear" else conv_mask
    return rule(seen, weight, alive, budget)


def old_method(spec: str) -> object:
    """`intra:share=0.3,max_nonzero=3` to a method."""
    name, _, options = spec.partition(":")
    given: dict[str, object] = {}
    for option in filter(None, options.split(",")):
        key, _, text = option.partition("=")
        given[key] = text if key == "order" else text == "true" if key == "depthwise" else float(text)
        if key in ("n", "max_nonzero"):
            given[key] = int(text)
    return METHODS[name](**given)
