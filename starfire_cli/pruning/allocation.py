"""Allocations: how a network's sparsity is shared out among its layers.

Every allocation ends in whole numbers, dead units by layer, and leaves each layer at least one live unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from starfire_cli.pruning.budget import pruned
from starfire_cli.pruning.layer_units import LayerUnits, by_layer
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.selection import competitors, on_host

ALLOCATIONS = ("uniform", "erk", "er", "global")
_MANY = 1 << 18  # units that are worth a sample
_SAMPLE = 1 << 16


def uniform(units: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """The same sparsity in every layer: ceil(n * sparsity) dead units."""
    return {key: min(pruned(n, sparsity), n - 1) for key, n in units.items()}


def erdos_renyi(
    layers: Sequence[Layer],
    units: Mapping[str, int],
    sparsity: float,
    *,
    kernel: bool,
    dead: Mapping[str, int] | None = None,
    most: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Erdos-Renyi(-Kernel): wide layers are sparser; just as many dead units in all as the sparsity asks for,
    or where units differ in size, dead weights.

    A layer's density is in proportion to the sum of its dimensions over their product; what would be over 1 is dense,
    and the rest is solved again (Mocanu et al., 2018, arXiv 1707.04780; Evci et al., 2020, arXiv 1911.11134).

    Args:
        layers: whose shapes count.
        units: how many each layer has.
        sparsity: of all weights together.
        kernel: whether the window's sides count as dimensions (ERK), or only inputs and outputs (ER).
        dead: how many of each layer are dead already, and stay so; by default none.
        most: how many of each layer may be, as where the sparsity will rise; by default all but one.
    """
    densities = erdos_renyi_densities(layers, {x.key: x.weights for x in layers}, sparsity, kernel=kernel)
    exact = {key: (1 - densities[key]) * n for key, n in units.items()}
    alike = len({layer.weights // units[layer.key] for layer in layers}) == 1
    total = pruned(sum(units.values()), sparsity) if alike else math.ceil(sum(exact.values()) - 1e-6)
    least = dead or dict.fromkeys(units, 0)
    limit = most or {key: n - 1 if densities[key] < 1 else 0 for key, n in units.items()}
    return _rounded(exact, least, {key: max(least[key], n) for key, n in limit.items()}, total)


def erdos_renyi_densities(
    layers: Sequence[Layer], units: Mapping[str, int], sparsity: float, *, kernel: bool
) -> dict[str, float]:
    """Each layer's density under Erdos-Renyi(-Kernel), before it is made a whole number of units."""
    shapes = {layer.key: layer.shape if kernel else layer.shape[:2] for layer in layers}
    raw = {key: sum(shape) / math.prod(shape) for key, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = [key for key in units if key not in dense]
        wanted = (1 - sparsity) * sum(units.values()) - sum(units[key] for key in dense)
        weight = sum(raw[key] * units[key] for key in rest)
        scale = wanted / weight if weight else 0.0
        over = {key for key in rest if scale * raw[key] > 1}
        if not over:
            return {key: 1.0 if key in dense else scale * raw[key] for key in units}
        # As published: of those over 1 the ones with the highest raw density become dense, then all is solved again.
        highest = max(raw[key] for key in over)
        dense |= {key for key in over if raw[key] == highest}


def globally(layers: Mapping[str, LayerUnits], scores: Mapping[str, Tensor], count: int) -> dict[str, int]:
    """One competition of all live units: how many of each layer are among the `count` that go.

    The smallest scores go, of equals those of the earlier layer; the strongest live unit of each layer stays.

    Args:
        layers: whose units compete.
        scores: (U,), by layer; their signs do not count.
        count: how many live units go in all; fewer go where each layer is down to one.
    """
    if count <= 0:
        return dict.fromkeys(layers, 0)
    total = sum(max(0, units.live - 1) for units in layers.values())
    if count >= total:
        return {key: max(0, units.live - 1) for key, units in layers.items()}
    bounds = _bracket(layers, scores, count)
    competing = by_layer(layers, lambda key, units: competitors(scores[key], units.alive_U, bounds, lists=units.lists))
    left = count - sum(x.lower for x in competing.values())
    if not 0 < left <= sum(len(x.within) for x in competing.values()):  # the sample misled
        competing = by_layer(layers, lambda key, units: competitors(scores[key], units.alive_U, None))
        left = count
    cutoff = kth_of_all([x.within for x in competing.values()], left)
    # A cutoff of another layer's wider type would be rounded to this one's before it is compared.
    values = {key: x.within.to(cutoff.dtype) for key, x in competing.items()}
    below = {key: x.lower + int((values[key] < cutoff).sum()) for key, x in competing.items()}
    room = count - sum(below.values())
    for key in competing:
        tied = min(room, int((values[key] == cutoff).sum()))
        below[key] += tied
        room -= tied
    return below


def globally_by_weight(layers: Mapping[str, LayerUnits], scores: Mapping[str, Tensor], weights: int) -> dict[str, int]:
    """As `globally`, for units of several sizes: the first go that hold so many `weights` together, or a few more."""
    within = {key: competitors(scores[key], units.alive_U, None).within.double() for key, units in layers.items()}
    numbers = [torch.full((len(values),), n, device=values.device) for n, values in enumerate(within.values())]
    order = torch.cat(list(within.values())).sort(stable=True).indices
    number_N = torch.cat(numbers)[order]
    size_N = torch.tensor([units.size for units in layers.values()], device=order.device)[number_N]
    going_N = number_N[size_N.cumsum(0) - size_N < weights]
    return dict(zip(layers, torch.bincount(going_N, minlength=len(layers)).tolist(), strict=True))


def _bracket(layers: Mapping[str, LayerUnits], scores: Mapping[str, Tensor], count: int) -> tuple[float, float] | None:
    """Two scores that hardly ever miss the `count` smallest's last, as a sample tells; None where it cannot."""
    total = sum(units.live for units in layers.values())
    if total < _MANY or any(not on_host(score) or score.dtype != torch.float32 for score in scores.values()):
        return None
    step = sum(map(len, scores.values())) // _SAMPLE + 1
    samples = [scores[key][::step][units.alive_U[::step]].abs() for key, units in layers.items()]
    ordered = torch.cat(samples).sort().values
    share = count / total
    at, slack = share * len(ordered), 4 * math.sqrt(len(ordered) * share * (1 - share)) + len(layers)
    low, high = math.floor(at - slack), math.ceil(at + slack)
    return float(ordered[low]) if low >= 0 else -1.0, float(ordered[high]) if high < len(ordered) else math.inf


def kth_of_all(values: Sequence[Tensor], k: int) -> Tensor:
    """The k-th smallest (from 1) of all values >= 0 of some vectors, found by two passes of counting.

    The bits of a float that is not negative are in the order of the numbers: the first pass counts their upper half,
    the second the lower half of those that share the upper one. No device is asked for more than the two histograms.
    """
    wide = any(v.dtype == torch.float64 for v in values)
    if wide:  # units of many weights, of which there are few
        return torch.cat([v.double() for v in values]).sort().values[k - 1]
    bits = [v.float().contiguous().view(torch.int32) for v in values]
    upper = sum(torch.bincount(b >> 16, minlength=1 << 15) for b in bits)
    assert isinstance(upper, Tensor)
    passed = upper.cumsum(0)
    bin_ = int((passed < k).sum())
    before = int(passed[bin_ - 1]) if bin_ else 0
    lower = sum(torch.bincount(b[b >> 16 == bin_] & 0xFFFF, minlength=1 << 16) for b in bits)
    assert isinstance(lower, Tensor)
    found = bin_ << 16 | int((lower.cumsum(0) < k - before).sum())
    return torch.tensor(found, dtype=torch.int32, device=bits[0].device).view(torch.float32)


def _rounded(
    exact: Mapping[str, float], least: Mapping[str, int], most: Mapping[str, int], total: int
) -> dict[str, int]:
    """Whole numbers near `exact` that add up to `total`, as far as `least` and `most` let them.

    All are rounded down; then those that lack the most get one more. Or, where some were rounded up before and cannot
    go back, those that lack the least get one less.
    """
    counts = {key: max(least[key], min(most[key], math.floor(x + 1e-9))) for key, x in exact.items()}
    while missing := total - sum(counts.values()):
        sign = 1 if missing > 0 else -1
        room = {key: most[key] - n if sign > 0 else n - least[key] for key, n in counts.items()}
        able = sorted((key for key in exact if room[key]), key=lambda key: round(sign * (counts[key] - exact[key]), 9))
        if not able:
            break
        each = max(1, abs(missing) // len(able))
        for key in able[: abs(missing)]:
            counts[key] += sign * min(each, room[key])
    return counts
