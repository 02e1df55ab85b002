"""K-means of numbers for an entropy coder: values that are shared by many weights cost fewer bits (Chou et al., 1989).

Entropy-constrained quantisation: a number goes to the centroid with the least (distance)^2 + price * bits, where a
centroid that has the share p of all numbers takes -log2 p bits. The price is the lowest at which all numbers together
take no more bits on average than allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from starfire_cli.pruning.kmeans import ITERATIONS, Clusters, Floats, kmeans, linear, means

_HALVINGS = 14  # of the interval in which the price's logarithm lies
_STEP = 8.0  # from one price that is tried to the next, until one is high enough
_STEPS = 30


def entropy_kmeans(values: Floats, centroids: Floats, rate: float) -> Clusters:
    """Clusters whose numbers have an entropy of at most `rate` bits, and as little squared error as was found.

    Never more of it than k-means has with the largest power of two of centroids that meets the rate.

    Args:
        values: ascending, finite, (n,), at least one.
        centroids: the first ones, ascending, (k,).
        rate: bits a value, above 0.
    """
    found = kmeans(values, centroids)
    if entropy(found) <= rate:
        return found
    fewer = kmeans(values, linear(values, 1 << int(rate)))
    return min((fewer, *_cheapest(values, centroids, rate)), key=lambda clusters: _error(values, clusters))


def _cheapest(values: Floats, centroids: Floats, rate: float) -> Iterator[Clusters]:
    """The clusters at the lowest price that meets the rate; none where no price does, as with equal shares."""
    low = max(float(np.var(values)) * 1e-6, 1e-300)
    for _ in range(_STEPS):
        found = priced(values, centroids, low * _STEP)
        if entropy(found) <= rate:
            break
        low *= _STEP
    else:
        return
    high = low * _STEP
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        tried = priced(values, centroids, middle)
        if entropy(tried) > rate:
            low = middle
        else:
            found, high = tried, middle
    yield found


def entropy(clusters: Clusters) -> float:
    """Bits that the number of a value's cluster takes on average."""
    counts = np.diff(clusters.begins)
    return float((counts * np.log2(counts.sum() / counts)).sum() / counts.sum())


def _error(values: Floats, clusters: Clusters) -> float:
    """The sum of squared distances."""
    runs = zip(clusters.centroids, pairwise(clusters.begins), strict=True)
    return sum(float(np.square(values[start:stop] - centroid).sum()) for centroid, (start, stop) in runs)


def priced(values: Floats, centroids: Floats, price: float) -> Clusters:
    """Lloyd's iterations for the least sum of (distance)^2 + price * bits, from equal shares.

    Args:
        values: ascending, finite, (n,), at least one.
        centroids: the first ones, ascending, (k,).
        price: of a bit.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centroids = np.unique(centroids)  # first ones may be equal, where many values are
    costs = np.zeros(len(centroids))
    begins = np.zeros(0, np.intp)
    for _ in range(ITERATIONS):
        centroids, borders = envelope(centroids, costs)
        moved = np.concatenate([[0], np.searchsorted(values, borders, side="right"), [len(values)]])
        if np.array_equal(moved, begins):
            break
        counts = np.diff(moved)
        begins = np.append(moved[:-1][counts > 0], len(values))
        counts = counts[counts > 0]
        centroids = np.diff(sums[begins]) / counts
        costs = price * np.log2(len(values) / counts)
    return Clusters(means(values, begins), begins)


def envelope(centroids: Floats, costs: Floats) -> tuple[Floats, NDArray[np.float64]]:
    """The centroids that are the best for any number, and the borders between them, ascending.

    Args:
        centroids: ascending, all different, (k,).
        costs: what each adds to its squared distance, (k,).
    """
    kept: list[int] = []
    borders: list[float] = []
    place, cost = centroids.tolist(), costs.tolist()
    for i in range(len(place)):
        while kept:
            top = kept[-1]
            border = (place[top] + place[i]) / 2 + (cost[i] - cost[top]) / (2 * (place[i] - place[top]))
            if not borders or border > borders[-1]:
                borders.append(border)
                break
            kept.pop()  # the one below and this one are better on both sides of it
            borders.pop()
        kept.append(i)
    return centroids[kept], np.array(borders)
