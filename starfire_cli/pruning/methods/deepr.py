"""DeepR, deep rewiring (Bellec et al., 2018, arXiv 1711.05136)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from starfire_cli.pruning.axes import Axes, BoundPenalty, Change, SparseStart
from starfire_cli.pruning.layer_units import LayerUnits
from starfire_cli.pruning.masked_weights import MaskedWeights
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import SHAPED, check_choice, check_not_negative
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.selection import count_flags

_BIRTH = 1e-12  # the size of a weight that wakes, as in the authors' code; the paper has 0. In half precision, more.


@dataclass(frozen=True, kw_only=True)
class SignChange:
    """Live weights that have changed their sign go dormant; as many of the layer's dormant ones wake, with any sign.

    A weight that is exactly 0 counts as having changed its sign.
    """

    monotone: bool = field(default=False, init=False)
    reads: frozenset[str] = field(default=frozenset({"signs"}), init=False)

    def apply(self, layers: Mapping[str, LayerUnits], moment: Moment) -> dict[str, Change]:
        return {key: self._of(units, key, moment) for key, units in layers.items()}

    def _of(self, units: LayerUnits, key: str, moment: Moment) -> Change:
        assert units.signs is not None
        alive_N, weight_N = units.alive_U, units.flat(units.weight)
        changed_N = alive_N & (weight_N * units.flat(units.signs) <= 0)
        changed, dormant = count_flags(changed_N), units.count - units.live
        if changed > dormant:  # hardly anything is dormant: the first ones go
            changed_N = units.first(changed_N, dormant)
        count = min(changed, dormant)
        woken_N = moment.choose(key, ~alive_N, count, "wake", order=units.order)
        size = max(_BIRTH, torch.finfo(weight_N.dtype).tiny)
        signs = moment.generator(key, "sign").integers(0, 2, size=count) * 2 - 1
        born_N = torch.zeros_like(weight_N)
        born_N[units.numbered(woken_N)] = torch.as_tensor(signs * size, device=born_N.device).to(born_N.dtype)
        values = units.spread(born_N)
        return Change(alive_U=(alive_N & ~changed_N) | woken_N, values=values)


@dataclass(frozen=True, kw_only=True)
class _L1AndNoise:
    """L1 on live weights, and Gaussian noise on their gradients, while masks change."""

    l1: float
    noise: float
    temperature: float
    coldest: float

    def bind(self, model: nn.Module, tensors: MaskedWeights) -> BoundPenalty:
        return _Bound(self, tensors)


class _Bound:
    def __init__(self, term: _L1AndNoise, tensors: MaskedWeights) -> None:
        self._term, self._tensors = term, tensors

    def add_gradients(self, moment: Moment) -> None:
        if moment.step > moment.era.last_step:
            return
        term = self._term
        temperature = term.temperature * (term.coldest / term.temperature) ** moment.passed if term.temperature else 0.0
        size = (2 * term.noise * temperature) ** 0.5
        for key, weight in self._tensors.weights.items():
            if weight.grad is None:
                continue
            seed = int(moment.generator(key, "noise").integers(1 << 62))
            draws = torch.Generator(weight.device).manual_seed(seed)
            noise = torch.randn(weight.shape, generator=draws, device=weight.device, dtype=weight.dtype)
            weight.grad.add_(weight.detach().sign(), alpha=term.l1).add_(noise, alpha=size)

    def after_step(self, moment: Moment) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


@METHODS.register("deepr", "network")
@dataclass(frozen=True, kw_only=True)
class DeepRewiring:
    """Weights that change their sign go dormant, and as many dormant ones of the layer wake at random, at every step.

    Live weights have an L1 term and noise in their gradients, both until the era ends. The paper has plain SGD without
    weight decay. Published: ResNet50 on ImageNet at 80/90 %: 71.7/70.2; WRN-28-2 on CIFAR-10 at 50/70/90 %:
    92.92/92.50/91.41 (both arXiv 1902.05967 and its follow-ups): the weakest of its kind.

    Args:
        l1: the factor of the L1 term.
        temperature: of the noise at first, which has the variance 2 * eta * temperature; it falls to 1e-15 in the era.
        eta: the step size that the noise is computed with.
        allocation: "uniform" (which leaves the first convolution dense), "erk" or "er".
    """

    l1: float = 1e-5
    temperature: float = 1e-5
    eta: float = 0.01
    allocation: str = "uniform"

    def __post_init__(self) -> None:
        for name in ("l1", "temperature", "eta"):
            check_not_negative(name, getattr(self, name))
        check_choice("allocation", self.allocation, SHAPED)

    def axes(self) -> Axes:
        coldest = min(1e-15, self.temperature)
        return Axes(
            start=SparseStart(allocation=self.allocation),
            stages=(SignChange(),),
            every=1,
            span=(0.0, 0.95),
            dense_first=self.allocation == "uniform",
            penalty=_L1AndNoise(l1=self.l1, noise=self.eta, temperature=self.temperature, coldest=coldest),
        )
