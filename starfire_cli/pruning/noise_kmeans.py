"""Divides bits among the layers that share values, so that a given error costs the fewest (Choi et al., 2016).

The noise of a layer is the squared error of its values over the sum of their squares. At the least total of entropy-
coded bits for a mean noise of all layers, one more bit takes away equally much noise in every layer (arXiv 1612.01543;
Shoham and Gersho, 1988). So a large layer, whose bits are many, has more noise than a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from starfire_cli.pruning.entropy_kmeans import priced
from starfire_cli.pruning.kmeans import Clusters, Floats, kmeans

_PART = 1 << 14  # values of a layer by which prices are compared
_PER_DOUBLING = 16  # prices tried between one and twice it
_LEAST, _MOST = -48, 4  # base 2: the noise that one bit in all is worth at the lowest and the highest price


def noise_kmeans(values: Floats, centroids: Floats, price: float) -> Clusters:
    """Clusters with the least noise + price * bits in all that Lloyd's iterations find; k-means where the price is 0.

    Args:
        values: ascending, finite, (n,), not all 0.
        centroids: the first ones, ascending, (k,).
        price: noise that a bit is worth.
    """
    if price == 0:
        return kmeans(values, centroids)
    largest = float(np.abs(values).max())  # so that squares neither overflow nor vanish
    scaled = values / largest
    found = priced(scaled, centroids / largest, price * float(np.square(scaled).sum()))
    return Clusters(found.centroids * largest, found.begins)


def noise_of(values: Floats, clusters: Clusters) -> float:
    """The squared error over the sum of squares."""
    largest = float(np.abs(values).max())
    scaled, centroids = values / largest, clusters.centroids / largest
    error = np.square(scaled - np.repeat(centroids, np.diff(clusters.begins))).sum()
    return float(error / np.square(scaled).sum())


def price_of_noise(
    layers: Sequence[NDArray[np.floating]], first_centroids: Callable[[int, Floats], Floats], noise: float
) -> float:
    """The highest price at which the mean noise of the layers is within `noise`; 0 where k-means has more than that.

    Args:
        layers: the values of each, ascending, finite, not all 0.
        first_centroids: of a layer by its number and its values.
        noise: squared error over squares, above 0.
    """
    if not layers:
        return 0.0
    begin = [first_centroids(number, layer.astype(np.float64)) for number, layer in enumerate(layers)]

    def within(step: int, most: int | None = None) -> bool:
        price, total = 2.0 ** (step / _PER_DOUBLING), 0.0
        for layer, centroids in zip(layers, begin, strict=True):
            values = _thinned(layer, most)
            total += noise_of(values, noise_kmeans(values, centroids, price * len(layer) / len(values)))
        return total / len(layers) <= noise

    low, high = _LEAST * _PER_DOUBLING, _MOST * _PER_DOUBLING
    while high - low > 1:  # on a part of the values, which is almost right
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle, _PART) else (low, middle)
    while low > _LEAST * _PER_DOUBLING and not within(low):
        low -= 1
    return float(2.0 ** (low / _PER_DOUBLING)) if low > _LEAST * _PER_DOUBLING else 0.0


def _thinned(layer: NDArray[np.floating], most: int | None) -> Floats:
    """Values at equal distances in their order, at most so many."""
    if most is None or len(layer) <= most:
        return layer.astype(np.float64)
    return layer[(np.arange(most) * 2 + 1) * len(layer) // (2 * most)].astype(np.float64)
