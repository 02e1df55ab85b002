"""Selects the units of the lowest or highest scores, in passes over pieces that stay in a core's cache.

Scores are compared by their magnitude, so that weights and gradients are read as they are: a copy of |w| would cost
more than the search. Of equal scores the one of the lower index comes first, whatever the order in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfire_cli.pruning.memory_order import MemoryOrder, Places
from starfire_cli.pruning.smallest import kth_smallest

Floats = NDArray[Any]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The candidates between two bounds.

    Args:
        places: where they stand, ascending.
        scores: theirs, with signs.
        above: how many of all candidates, between the bounds or not, are above 0.
    """

    places: Places
    scores: Floats
    above: int


def list_candidates(score_N: Floats, among_N: Bools, low: float, high: float) -> Candidates:
    """The candidates with `low` <= |score| <= `high`.

    Args:
        score_N: without NaN.
        among_N: which are candidates.
        low: a number of the scores' type, or one that all or none of them pass; likewise the next.
        high: may be inf.
    """
    places, above = [], 0
    buffer, other = (np.empty(min(len(score_N), _PIECE), np.bool_) for _ in range(2))
    for piece, size_P in magnitudes(score_N):
        flag_P, other_P, among_P = buffer[: len(size_P)], other[: len(size_P)], among_N[piece]
        np.greater(score_N[piece], 0, out=flag_P)
        flag_P &= among_P
        above += int(np.count_nonzero(flag_P))
        np.less_equal(size_P, high, out=flag_P)
        flag_P &= among_P
        if low > 0:
            flag_P &= np.greater_equal(size_P, low, out=other_P)
        places.append(np.flatnonzero(flag_P) + piece.start)
    found = np.concatenate(places)
    return Candidates(places=found, scores=score_N[found], above=above)


Lists = Callable[[Floats, Bools, float, float], Candidates]
"""A function that does what `list_candidates` does."""

_PIECE = 1 << 18  # scores that are worked on together
_MANY = 1 << 14  # units that are worth a sample
_SAMPLE = 1 << 12


def smallest(
    score_N: Tensor,
    among_N: Tensor,
    count: int,
    *,
    sign: int = 1,
    order: MemoryOrder | None = None,
    lists: Lists = list_candidates,
) -> Tensor:
    """The `count` candidates of the lowest |score|, of equals those of the lower index: bool, (N,).

    Args:
        score_N: any floating scores without NaN; their signs do not count.
        among_N: bool, the candidates.
        count: how many, at most as many as there are.
        sign: -1 for the highest score.
        order: of the units; None: that of their indices.
        lists: what lists candidates.
    """
    if count <= 0:
        return torch.zeros_like(among_N)
    if on_host(score_N):
        chosen = np.zeros(len(among_N), np.bool_)
        chosen[_smallest_places(score_N.numpy(), among_N.contiguous().numpy(), count, sign, order, lists)] = True
        return torch.from_numpy(chosen)
    score_N = score_N.abs() if sign == 1 else -score_N.abs()
    values = score_N[among_N]
    if count >= len(values):
        return among_N.clone()
    cutoff = kth_smallest(values[None], count)[0]
    chosen_N = (score_N < cutoff) & among_N
    tied_N = (score_N == cutoff) & among_N
    room = count - int(torch.count_nonzero(chosen_N))
    if room < int(torch.count_nonzero(tied_N)):
        tied_N = first(tied_N, room, order)
    return chosen_N | tied_N


def largest(
    score_N: Tensor,
    among_N: Tensor,
    count: int,
    *,
    order: MemoryOrder | None = None,
    lists: Lists = list_candidates,
) -> Tensor:
    """The `count` candidates of the highest |score|, of equals those of the lower index: bool, (N,)."""
    return smallest(score_N, among_N, count, sign=-1, order=order, lists=lists)


def first(among_N: Tensor, count: int, order: MemoryOrder | None) -> Tensor:
    """The `count` candidates of the lowest indices: bool, (N,)."""
    if order is None:
        return among_N & (among_N.cumsum(0) <= count)
    by_index_N = order.by_index(among_N)
    return order.by_place(by_index_N & (by_index_N.cumsum(0) <= count))


def smallest_by_sign(
    score_N: Tensor,
    among_N: Tensor,
    share: Callable[[int], int],
    *,
    order: MemoryOrder | None = None,
    lists: Lists = list_candidates,
) -> Tensor:
    """`smallest` of the candidates above 0, and of all others: bool, (N,). Both are found in one pass.

    Args:
        score_N: as in `smallest`, with signs.
        among_N: likewise.
        share: how many of so many go; about in proportion.
        order: likewise.
        lists: likewise.
    """
    if not on_host(score_N) or len(score_N) < _MANY:
        above_N = among_N & (score_N > 0)
        sides = (above_N, among_N & ~above_N)
        first_N, second_N = (smallest(score_N, side_N, share(count_flags(side_N)), order=order) for side_N in sides)
        return first_N | second_N
    score, among, chosen = score_N.numpy(), among_N.numpy(), np.zeros(len(among_N), np.bool_)
    candidates = int(np.count_nonzero(among))
    limit = _likely_limit(score, among, share(candidates), 1)
    found = lists(score, among, 0.0, math.inf if limit is None else limit)
    wanted = share(found.above), share(candidates - found.above)
    listed = int(np.count_nonzero(found.scores > 0))
    if listed < wanted[0] or len(found.scores) - listed < wanted[1]:  # the two are not spread alike
        found = lists(score, among, 0.0, math.inf)
    for side, n in zip((found.scores > 0, found.scores <= 0), wanted, strict=True):
        at = np.flatnonzero(side)
        chosen[_smallest_listed(found.places[at], np.abs(found.scores[at]), n, 1, order)] = True
    return torch.from_numpy(chosen)


@dataclass(frozen=True, kw_only=True)
class Competitors:
    """The candidates of one layer in a competition of several, without its strongest, which does not compete.

    Args:
        lower: how many lie below the bounds.
        within: the magnitudes of those within.
    """

    lower: int
    within: Tensor


def competitors(
    score_N: Tensor, among_N: Tensor, bounds: tuple[float, float] | None, *, lists: Lists = list_candidates
) -> Competitors:
    """The candidates' magnitudes from the lower bound to the upper one, both included; None: all of them."""
    if bounds is None:
        values = score_N[places_of(among_N)].abs()
        return Competitors(lower=0, within=_without(values, float(values.max())) if len(values) else values)
    low, high = bounds
    score, among = score_N.numpy(), among_N.numpy()
    lower, most = 0, -1.0
    flag = np.empty(min(len(score), _PIECE), np.bool_)
    for piece, size_P in magnitudes(score):
        flag_P = np.less(size_P, low, out=flag[: len(size_P)])
        flag_P &= among[piece]
        lower += int(np.count_nonzero(flag_P))
        if float(size_P.max()) > most:
            most = max(most, float(size_P.max(where=among[piece], initial=-1.0)))
    inside = torch.from_numpy(np.abs(lists(score, among, low, high).scores))
    return Competitors(lower=lower - (0 <= most < low), within=_without(inside, most))


def _without(values: Tensor, one: float) -> Tensor:
    """All but one of some values, if it is among them."""
    at = (values == one).nonzero()[:1].flatten()
    return torch.cat([values[: int(at)], values[int(at) + 1 :]]) if len(at) else values


def below(score_N: Tensor, among_N: Tensor, limit: float) -> Tensor:
    """The candidates whose |score| lies under a limit: bool, (N,)."""
    if not on_host(score_N):
        return (score_N.abs() < limit) & among_N
    score, found = score_N.numpy(), np.empty(len(score_N), np.bool_)
    for piece, size_P in magnitudes(score):
        np.less(size_P, limit, out=found[piece])
    return torch.from_numpy(found).logical_and_(among_N)


def smallest_of_rows(
    score_KN: Tensor, among_KN: Tensor, count_K: Tensor, *, sign: int = 1, order: MemoryOrder | None = None
) -> Tensor:
    """`smallest` of each row: bool, (K, N).

    Args:
        score_KN: as `score_N`.
        among_KN: bool, the candidates.
        count_K: how many of each row, int64; at most as many as there are.
        sign: -1 for the highest score.
        order: of the units of all rows, each of which holds whole channels.
    """
    score, among, count = score_KN.cpu().numpy(), among_KN.cpu().numpy(), count_K.cpu().numpy()
    chosen = np.zeros(among.shape, np.bool_)
    due = np.flatnonzero(count > 0)
    step = max(1, _PIECE // max(1, among.shape[1]))
    for start in range(0, len(due), step):
        rows = due[start : start + step]
        chosen[rows] = _smallest_of_rows(score[rows], among[rows], count[rows], sign, order)
    return torch.from_numpy(chosen).to(among_KN.device)


def _smallest_of_rows(
    score_KN: Floats, among_KN: Bools, count_K: NDArray[np.int64], sign: int, order: MemoryOrder | None
) -> Bools:
    key_KN = np.abs(score_KN, out=score_KN)  # a copy already
    if sign < 0:
        np.negative(key_KN, out=key_KN)
    np.copyto(key_KN, np.inf, where=~among_KN)
    most = int(count_K.max())
    ordered = np.partition(key_KN, most - 1, axis=1)[:, :most]
    ordered.sort(axis=1)
    cutoff_K1 = np.take_along_axis(ordered, count_K[:, None] - 1, axis=1)
    chosen_KN: Bools = key_KN < cutoff_K1
    tied_KN = (key_KN == cutoff_K1) & among_KN
    room_K = count_K - np.count_nonzero(chosen_KN, axis=1)
    for k in np.flatnonzero(np.count_nonzero(tied_KN, axis=1) > room_K):
        tied_KN[k] = first(torch.from_numpy(tied_KN[k]), int(room_K[k]), order).numpy()
    chosen_KN |= tied_KN
    return chosen_KN


def places_of(flag_N: Tensor) -> Tensor:
    """The places of flags that are set: int64, ascending; on a CPU by numpy, which is several times faster at it."""
    return torch.from_numpy(np.flatnonzero(flag_N.numpy())) if flag_N.is_cpu else flag_N.nonzero().flatten()


def count_of_rows(flag_KN: Tensor) -> Tensor:
    """The number of flags of each row that are set: int64, (K,); by bytes, as torch adds up bools one by one."""
    return flag_KN.contiguous().view(torch.uint8).sum(1, dtype=torch.int32).long()


def on_host(score_N: Tensor) -> bool:
    """Whether numpy can read some scores where they are."""
    return score_N.device.type == "cpu" and score_N.dtype in (torch.float32, torch.float64)


def pieces(count: int) -> Iterator[slice]:
    """Slices of so many numbers that stay in a core's cache."""
    return (slice(start, min(start + _PIECE, count)) for start in range(0, count, _PIECE))


def magnitudes(score_N: Floats) -> Iterator[tuple[slice, Floats]]:
    """The scores' magnitudes piece by piece, each written over the last: (which, magnitudes)."""
    buffer_P = np.empty(min(len(score_N), _PIECE), score_N.dtype)
    for piece in pieces(len(score_N)):
        yield piece, np.abs(score_N[piece], out=buffer_P[: piece.stop - piece.start])


def count_flags(flag_N: Tensor) -> int:
    """The number of flags that are set; on a CPU by numpy, which is ten times faster at it."""
    return int(np.count_nonzero(flag_N.numpy()) if flag_N.is_cpu else torch.count_nonzero(flag_N))


def _smallest_places(
    score_N: Floats, among_N: Bools, count: int, sign: int, order: MemoryOrder | None, lists: Lists
) -> Places:
    """The places of the `count` smallest, in no order."""
    limit = _likely_limit(score_N, among_N, count, sign)
    if limit is not None:
        found = lists(score_N, among_N, *((0.0, limit) if sign == 1 else (max(0.0, limit), math.inf)))
        if len(found.places) >= count:
            return _smallest_listed(found.places, np.abs(found.scores), count, sign, order)
    places = np.flatnonzero(among_N)  # the sample misled, or nearly all are wanted
    return _smallest_listed(places, np.abs(score_N[places]), count, sign, order)


def _smallest_listed(places: Places, values: Floats, count: int, sign: int, order: MemoryOrder | None) -> Places:
    """Those of some places whose values, which are magnitudes, are the `count` smallest."""
    if count <= 0 or count >= len(places):
        return places[:count]
    values = sign * values
    cutoff = np.partition(values, count - 1)[count - 1]
    low, tied = places[values < cutoff], places[values == cutoff]
    room = count - len(low)
    if order is not None and room < len(tied):
        tied = tied[np.argsort(order.indices(tied))]
    return np.concatenate([low, tied[:room]])


def _likely_limit(score_N: Floats, among_N: Bools, count: int, sign: int) -> float | None:
    """A magnitude that is hardly ever passed by the `count` smallest, as a sample tells; None where it cannot."""
    if len(score_N) < _MANY:
        return None
    step = len(score_N) // _SAMPLE + 1
    sample = np.where(among_N[::step], sign * np.abs(score_N[::step]), np.inf)
    share = count / len(score_N)
    rank = math.ceil(len(sample) * share + 4 * math.sqrt(len(sample) * share * (1 - share)) + 8)
    return float(sign * np.partition(sample, rank)[rank]) if rank < len(sample) else None
