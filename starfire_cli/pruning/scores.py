"""Scores: what the weakest units are pruned by, and the strongest dead ones are regrown by."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from starfire_cli.errors import unknown
from starfire_cli.pruning.layer_units import LayerUnits


def _magnitude(units: LayerUnits) -> Tensor:
    return units.magnitudes()


def _gradient(units: LayerUnits) -> Tensor:
    assert units.gradient is not None
    return units.scores(units.gradient)


def _sensitivity(units: LayerUnits) -> Tensor:
    """|w dL/dw|, the first-order change of the loss if the weight goes (Lee et al., 2019, arXiv 1810.02340)."""
    assert units.gradient is not None
    return units.scores(units.gradient * units.weight)


def _momentum(units: LayerUnits) -> Tensor:
    """The optimizer's average gradient (Dettmers and Zettlemoyer, 2019, arXiv 1907.04840)."""
    assert units.momentum is not None
    return units.scores(units.momentum)


def _standardised(units: LayerUnits) -> Tensor:
    """|w| over the standard deviation of the layer's live weights (Han et al., 2015)."""
    return units.magnitudes() / max(units.deviation, 1e-30)


def _effective(units: LayerUnits) -> Tensor:
    """|w gamma / sigma| of the BatchNorm that follows; |w| where none does (Dai et al., 2019, arXiv 1711.02017)."""
    if units.factor is None:
        return units.magnitudes()
    return units.scores(units.weight * units.factor.reshape(-1, *[1] * (units.weight.ndim - 1)))


SCORES: dict[str, Callable[[LayerUnits], Tensor]] = {
    "magnitude": _magnitude,
    "gradient": _gradient,
    "sensitivity": _sensitivity,
    "momentum": _momentum,
    "standardised": _standardised,
    "effective": _effective,
}
READS = {
    "gradient": frozenset({"gradient"}),
    "sensitivity": frozenset({"gradient"}),
    "momentum": frozenset({"momentum"}),
    "effective": frozenset({"batchnorm"}),
}
"""The inputs that a score reads beside the weights."""


def check_score(name: str) -> None:
    """Raises BadOption for a score there is not."""
    if name not in SCORES:
        raise unknown("score", name, SCORES)


def score(name: str, units: LayerUnits) -> Tensor:
    """The units' scores, (U,), >= 0. Raises StarfireError where they are not finite."""
    return SCORES[name](units)
