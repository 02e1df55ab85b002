"""Totals over the layers of a network: weights, dead ones, and their shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class CountedLayer(Protocol):
    """A layer with the numbers of its weights and of the dead ones."""

    @property
    def weights(self) -> int:
        """The number of weights."""
        ...

    @property
    def zeros(self) -> int:
        """The number of dead weights."""
        ...


class LayerTotals:
    """The totals of a record that has `layers`, and `parameters`, those of the whole network."""

    layers: Sequence[CountedLayer]
    parameters: int

    @property
    def prunable(self) -> int:
        """The number of weights in all layers that are listed."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """The number of dead weights in them."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity_prunable(self) -> float:
        """Dead weights over the weights of the layers that are listed, from 0 to 1."""
        return self.zeros / max(1, self.prunable)

    @property
    def sparsity_total(self) -> float:
        """Dead weights over all parameters, from 0 to 1."""
        return self.zeros / max(1, self.parameters)
