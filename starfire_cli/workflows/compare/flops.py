"""The epochs by which methods spend equally many training FLOPs."""

from __future__ import annotations

from collections.abc import Mapping


def equal_epochs(costs: Mapping[str, float], epochs: int) -> dict[str, int]:
    """Epochs for each method, so that all spend what the cheapest does in `epochs`; whole, at least 1.

    Args:
        costs: training FLOPs of each over those of a dense network, at equal epochs.
        epochs: of the cheapest.
    """
    budget = epochs * min(costs.values())
    return {name: max(1, round(budget / cost)) for name, cost in costs.items()}
