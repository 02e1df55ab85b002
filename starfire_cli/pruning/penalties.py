"""Penalties on weights, with their gradients in closed form: group lasso over any unit, and L1.

Units are named as in `units.py`, by the axes of (K, C, R, S) that one spans: "CRS" is a filter, "KRS" an input channel,
"K" a column of the im2col matrix, "RS" a kernel, "KCRS" the whole layer. Nothing here builds a graph for autograd: what
a penalty adds to gradients that are there already costs a few passes over the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor, nn

_BLOCK = 1 << 17  # weights that are worked on at a time on a CPU
_DIMS = "GKCRS"  # groups of a convolution lie side by side: where K or C tells units apart, each group's are its own


class Rule(Protocol):
    """A function of one weight, and its gradient."""

    def value(self, weight: Tensor, groups: int) -> Tensor:
        """The function's value, a scalar tensor."""
        ...

    def add_gradient(self, weight: Tensor, gradient: Tensor, strength: Tensor, groups: int) -> None:
        """Add `strength` (a scalar tensor) times the function's gradient to `gradient`, in place."""
        ...


@dataclass(frozen=True, slots=True)
class GroupLasso:
    """The sum of sqrt(sum of w^2 + eps) over groups of weights.

    Args:
        units: the axes that a group spans; with several, all kinds are added, so that a weight is in a group of each.
        eps: with 0, the gradient of a group of zeros is 0.
        weighted: a group counts as often as the square root of its number of weights.
    """

    units: tuple[str, ...]
    eps: float = 0.0
    weighted: bool = False

    def value(self, weight: Tensor, groups: int = 1) -> Tensor:
        return torch.stack([size * root.sum() for root, size in self._roots(weight, groups)]).sum()

    def add_gradient(self, weight: Tensor, gradient: Tensor, strength: Tensor, groups: int = 1) -> None:
        factors = [strength * size / root for root, size in self._roots(weight, groups)]
        if not self.eps:
            factors = [factor.masked_fill_(factor.isinf() | factor.isnan(), 0) for factor in factors]
        _view(gradient, groups).addcmul_(_view(weight.detach(), groups), reduce(torch.add, factors))

    def _roots(self, weight: Tensor, groups: int) -> list[tuple[Tensor, float]]:
        """For each kind of group the roots, of size 1 along spanned axes of `_DIMS`, and how often one counts."""
        squares = SquareSums(weight.detach(), groups)
        sums = [squares.over(unit) for unit in self.units]
        sizes = [weight.numel() / total.numel() for total in sums]
        return [
            (t.add_(self.eps).sqrt_(), math.sqrt(n) if self.weighted else 1.0) for t, n in zip(sums, sizes, strict=True)
        ]


class SquareSums:
    """Sums of a weight's squares over the units of any kind; those along either axis of the im2col matrix in one pass.

    Args:
        weight: (K, C, R, S) or (O, I).
        groups: the convolution's.
    """

    def __init__(self, weight: Tensor, groups: int = 1) -> None:
        self._weight_GKCRS = _view(weight, groups)
        self._filters: Tensor | None = None
        self._columns: Tensor | None = None
        if groups == 1 and weight.device.type == "cpu":
            self._filters, self._columns = _both_ways(self._weight_GKCRS)

    def over(self, unit: str) -> Tensor:
        """The sums over the units that span these axes, of size 1 along each of them, otherwise as `_DIMS`."""
        spans = _spans(unit)
        if not spans:
            return self._weight_GKCRS.square()
        if self._columns is not None and 1 in spans:
            return self._columns.sum(spans, keepdim=True)
        if self._filters is not None and spans == [2, 3, 4]:
            return self._filters.clone()
        return self._weight_GKCRS.square().sum(spans, keepdim=True)


def _both_ways(weight_GKCRS: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the squares of each filter, (1, K, 1, 1, 1), and of each im2col column, (1, 1, C, R, S).

    By blocks that stay in the cache: the weights come from memory once.
    """
    K, C, R, S = weight_GKCRS.shape[1:]
    order = sorted((2, 3, 4), key=weight_GKCRS.stride, reverse=True)  # as they lie in memory, so that nothing is copied
    weight_KN = weight_GKCRS.permute(0, 1, *order).reshape(K, C * R * S)
    columns_N = weight_KN.new_zeros(C * R * S)
    filters = []
    for block in torch.split(weight_KN, max(1, _BLOCK // max(1, C * R * S))):
        squares = block.square()
        columns_N += squares.sum(0)
        filters.append(squares.sum(1))
    columns = columns_N.reshape([1, 1, *(weight_GKCRS.shape[n] for n in order)])
    back = [0, 1, *(2 + order.index(n) for n in (2, 3, 4))]
    return torch.cat(filters).reshape(1, K, 1, 1, 1), columns.permute(back)


@dataclass(frozen=True, slots=True)
class L1:
    """The sum of |w|, whose gradient at 0 is taken as 0."""

    def value(self, weight: Tensor, groups: int = 1) -> Tensor:
        return weight.detach().abs().sum()

    def add_gradient(self, weight: Tensor, gradient: Tensor, strength: Tensor, groups: int = 1) -> None:
        gradient.addcmul_(weight.detach().sign(), strength)


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A rule on one parameter, (K, C, R, S), (O, I) or a vector, of a convolution with so many groups."""

    parameter: nn.Parameter
    rule: Rule
    groups: int = 1


class TermSum:
    """A strength times the sum of terms.

    Args:
        terms: on parameters of one device.
        strength: what the sum is multiplied with; kept on the device, so that a captured step sees it change.
    """

    def __init__(self, terms: Iterable[Term], strength: float = 0.0) -> None:
        self.terms: Sequence[Term] = tuple(terms)
        first = next((term.parameter for term in self.terms), torch.zeros(()))
        self.strength = torch.tensor(strength, device=first.device, dtype=first.dtype)

    @torch.no_grad()
    def total(self) -> Tensor:
        """The sum of the terms without the strength, a scalar tensor in float64 where the device has that."""
        if not self.terms:
            return torch.zeros(())
        exact = torch.float32 if self.strength.device.type == "mps" else torch.float64
        return torch.stack([t.rule.value(t.parameter, t.groups).to(exact) for t in self.terms]).sum()

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the penalty's gradient to that of each parameter that has one."""
        for term in self.terms:
            if term.parameter.grad is not None:
                term.rule.add_gradient(term.parameter, term.parameter.grad, self.strength, term.groups)


def strength_for_ratio(ratio: float, loss: float, total: float) -> float:
    """The strength at which the penalty is `ratio` of loss and penalty together, for a sum of terms of `total`."""
    return ratio * loss / (total * (1 - ratio))


def _spans(unit: str) -> list[int]:
    """The dimensions (of `_DIMS`) that a group of this unit spans."""
    return [n for n, dim in enumerate(_DIMS) if dim in unit or (dim == "G" and {"K", "C"} <= set(unit))]


def _view(weight: Tensor, groups: int) -> Tensor:
    """The memory of (K, C, R, S) or (O, I) as `_DIMS`."""
    K, C, *window = (*weight.shape, 1, 1)[:4]
    return weight.view(groups, K // groups, C, *window)
