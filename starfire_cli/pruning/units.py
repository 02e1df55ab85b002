"""Units of weights that are pruned together, and the competitions that the weakest of them lose.

Axes are those of a convolution weight, (K, C, R, S); a linear weight (O, I) has K = O, C = I and R = S = 1. A grouped
convolution is several side by side: where K or C tells competitions apart, each group's are its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from starfire_cli.pruning.smallest import prune_smallest, prune_smallest_planes

_DIMS = "GKkCcRS"  # the group, the outputs and inputs of a group as tile and place in it, the window
_SHORT = 9  # competitors that are compared pair by pair


@dataclass(frozen=True, slots=True)
class Cut:
    """The number of units of each competition that must be gone.

    A weight of a window is `Cut("", "KC", n)`, a kernel of an input channel `Cut("RS", "C", n)`, a filter of the layer
    `Cut("CRS", "", n)`, an input channel `Cut("KRS", "", n)`, a row of windows `Cut("S", "", n)`, a single weight
    `Cut("", "", n)`.

    Args:
        unit: the axes that a unit spans.
        within: the axes of which every index is a competition of its own; units differ in all that are left.
        count: how many units of each competition are gone, those that were dead before included.
        reduce: a unit's score from |w| of its live weights, "max", "sum", "mean" or "norm"; of dead ones it is 0.
        keep: axes of which every index keeps its strongest live unit, whatever the count (of equals the last).
        tile: units are tiles of so many outputs by so many inputs; those at the ragged edges are smaller.
    """

    unit: str
    within: str
    count: int
    reduce: Literal["max", "sum", "mean", "norm"] = "max"
    keep: str = ""
    tile: int = 1

    def competitors(self, shape: Sequence[int], groups: int = 1) -> int:
        """The number of units of each competition in a weight of this shape."""
        sizes = _sizes(shape, groups, self.tile)
        return math.prod(sizes[dim] for dim in _roles(self)[2])


Budget = tuple[Cut, ...]
"""The cuts due in one layer, made one after the other, each in what the last one left."""


def apply_cuts(weight: Tensor, alive: Tensor, cuts: Budget, groups: int = 1) -> Tensor:
    """The mask of a weight after the cuts.

    Exactly `count` units of each competition are gone, or more where more were dead or fewer where `keep` holds them.
    The dead go first, then those of the lowest score, then those of the lowest index. A unit is dead when all its
    weights are.

    Args:
        weight: (K, C, R, S) or (O, I), finite; or any other tensor whose magnitudes are the weights' scores.
        alive: bool, of the weight's shape.
        cuts: made in this order.
        groups: the convolution's.

    Returns:
        Bool, of the weight's shape, a subset of `alive` in memory of its own.
    """
    magnitude, left = _magnitudes(weight), alive
    for cut in cuts:
        if cut.count > 0 and left.numel():
            left = _cut(magnitude, left, cut, groups)
    return left.clone() if left is alive else left


def live_share(cuts: Budget, shape: Sequence[int], groups: int = 1) -> float:
    """The share of the weights that live after the cuts, of a layer of this shape where nothing was dead before.

    No weight is looked at: guarded units (`keep`) and ragged tiles count as all others do.
    """
    live, before = 1.0, frozenset[str]()
    for cut in cuts:
        share = 1 - cut.count / cut.competitors(shape, groups)
        inside = frozenset("KCRS") - frozenset(cut.within)
        # Competitions inside of what went as one before lose in all that is left, others count the dead first.
        live = live * share if before and inside <= before else min(live, share)
        before = frozenset(cut.unit)
    return max(0.0, live)


def rank_units(weight: Tensor, alive: Tensor, cut: Cut, groups: int = 1) -> tuple[Tensor, Tensor, Tensor | None]:
    """The scores of all units, whether they are alive, and whether `keep` holds them (None: it holds nothing).

    Returns:
        Each of `_DIMS`, the axes that a unit spans being of size 1. Sums, means and norms are float64, so that two
        units whose weights differ compare as they should.
    """
    return _rank(_magnitudes(weight), alive, cut, groups)


def _cut(magnitude: Tensor, alive: Tensor, cut: Cut, groups: int) -> Tensor:
    score, living, guard = _rank(magnitude, alive, cut, groups)
    kept = _survivors(score if guard is None else torch.where(guard, torch.inf, score), living, cut)
    if guard is not None:
        kept = kept | guard
    if kept.numel() == alive.numel():  # single weights
        return kept.reshape(alive.shape)
    return _as_weights(_view(alive, groups, cut.tile) & kept, cut, alive.shape, groups)


def spread_units(units_U: Tensor, cut: Cut, shape: Sequence[int], groups: int = 1) -> Tensor:
    """Units, in the order of the weight's axes, as weights: of the shape of a weight, each with its unit's value."""
    sizes = _sizes(shape, groups, cut.tile)
    spans = _roles(cut)[0]
    units = units_U.reshape([1 if dim in spans else size for dim, size in enumerate(sizes)])
    return _as_weights(units.expand(sizes), cut, shape, groups)


def _as_weights(x: Tensor, cut: Cut, shape: Sequence[int], groups: int) -> Tensor:
    """The inverse of `_view`."""
    K, C, *window = (*shape, 1, 1)[:4]
    whole = x.reshape(groups, x.shape[1] * cut.tile, x.shape[3] * cut.tile, *window)
    return whole[:, : K // groups, :C].reshape(tuple(shape))


def _rank(magnitude: Tensor, alive: Tensor, cut: Cut, groups: int) -> tuple[Tensor, Tensor, Tensor | None]:
    spans = _roles(cut)[0]
    score, living = _view(magnitude, groups, cut.tile), _view(alive, groups, cut.tile)
    every = living
    if any(score.shape[dim] > 1 for dim in spans):
        number = living.to(score.dtype)  # several times as fast as to pass through bool
        score, living = _reduced(score * number, cut, spans, alive, groups), number.amax(spans, keepdim=True) > 0
    return score, living, _strongest(score, every, cut, spans) if cut.keep else None


def _reduced(score: Tensor, cut: Cut, spans: list[int], alive: Tensor, groups: int) -> Tensor:
    if cut.reduce == "max":
        return score.amax(spans, keepdim=True)
    exact = score.double().contiguous()  # one order of adding for all memory formats
    if cut.reduce == "norm":
        return exact.square().sum(spans, keepdim=True).sqrt()
    total = exact.sum(spans, keepdim=True)
    if cut.reduce == "sum":
        return total
    return total / _view(torch.ones_like(alive), groups, cut.tile).sum(spans, keepdim=True)


def _strongest(score: Tensor, alive: Tensor, cut: Cut, spans: list[int]) -> Tensor:
    """True for the unit of the highest score among all that hold a live weight of some index of `keep`."""
    keep = set(cut.keep) | ({"G"} if set(cut.keep) & {"K", "C"} else set())
    keep |= {dim.lower() for dim in cut.keep if dim in "KC"}
    kept = [n for n, dim in enumerate(_DIMS) if dim in keep]
    order = [*kept, *(n for n in range(len(_DIMS)) if n not in kept)]
    inner = [n for n in spans if n not in kept]
    if any(alive.shape[n] > 1 for n in inner):
        alive = alive.any(tuple(inner), keepdim=True)
    shape = [alive.shape[n] for n in order]
    alive_RN = alive.permute(order).reshape(math.prod(shape[: len(kept)]), -1)
    key_RN = torch.where(alive, score, -1.0).permute(order).reshape(alive_RN.shape)
    last_R1 = key_RN.shape[1] - 1 - key_RN.flip(1).argmax(1, keepdim=True)
    held_RN = torch.zeros_like(alive_RN).scatter_(1, last_R1, True) & alive_RN
    held = held_RN.reshape(shape).permute([order.index(n) for n in range(len(order))])
    over = tuple(n for n in spans if held.shape[n] > 1)
    return held.any(over, keepdim=True) if over else held


def _survivors(score: Tensor, alive: Tensor, cut: Cut) -> Tensor:
    """A mask of the units that are left, of the units' shape."""
    spans, pools, rivals = _roles(cut)
    N = math.prod(alive.shape[dim] for dim in rivals)
    if N <= _SHORT:  # as N planes, which the windows of channels_last memory nearly are already
        order = [*rivals, *pools, *spans]
        planes = (N, -1, alive.shape[pools[-1]] if pools else 1)
        score_NP, alive_NP = (x.permute(order).reshape(planes) for x in (score, alive))
        kept = prune_smallest_planes(score_NP, alive_NP, cut.count)
    else:
        order = [*pools, *rivals, *spans]
        score_PN, alive_PN = (x.permute(order).reshape(-1, N).contiguous() for x in (score, alive))
        kept = prune_smallest(score_PN, alive_PN, min(cut.count, N))
    moved = [alive.shape[dim] for dim in order]
    return kept.reshape(moved).permute([order.index(n) for n in range(len(order))])


def _roles(cut: Cut) -> tuple[list[int], list[int], list[int]]:
    """The dimensions (of `_DIMS`) that a unit spans, that tell competitions apart, and that tell competitors apart."""
    assert not set(cut.unit) & set(cut.within), f"{cut}: what a unit spans cannot tell competitions apart"
    unit = {"k", "c", *cut.unit, *("G" if {"K", "C"} <= set(cut.unit) else "")}
    pool = {*cut.within, *("G" if set(cut.within) & {"K", "C"} else "")}
    spans = [n for n, dim in enumerate(_DIMS) if dim in unit]
    pools = [n for n, dim in enumerate(_DIMS) if dim in pool]
    return spans, pools, [n for n in range(len(_DIMS)) if n not in spans and n not in pools]


def _view(x: Tensor, groups: int, tile: int) -> Tensor:
    """A tensor of the weight's shape as `_DIMS`, with zeros where tiles reach over its edges."""
    sizes = _sizes(x.shape, groups, tile)
    if tile > 1:
        K, C, *window = (*x.shape, 1, 1)[:4]
        x = pad(x.reshape(groups, K // groups, C, *window), (0, 0, 0, 0, 0, -C % tile, 0, -(K // groups) % tile))
    return x.reshape(sizes)


def _sizes(shape: Sequence[int], groups: int, tile: int) -> tuple[int, ...]:
    K, C, R, S = (*shape, 1, 1)[:4]
    return groups, -(-(K // groups) // tile), tile, -(-C // tile), tile, R, S


def _magnitudes(weight: Tensor) -> Tensor:
    dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
    return weight.detach().abs().to(dtype)
