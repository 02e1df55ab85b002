"""K-means of numbers: exact Lloyd iterations in one dimension, on sorted values (Lloyd, 1982).

Clusters of numbers are intervals, so a cluster is a run of the sorted values: its limits are found by bisection, its
sum is the difference of two prefix sums. An iteration costs k searches, however many values there are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 300
Floats = NDArray[np.float64]


class Clusters(NamedTuple):
    """Centroids in ascending order, float64, (k,), and the places in the sorted values where each of them begins.

    Cluster i has the sorted values `begins[i]` to `begins[i + 1]`, (k + 1,); none of them is empty.
    """

    centroids: Floats
    begins: NDArray[np.intp]


def linear(values: Floats, count: int) -> Floats:
    """First centroids at equal distances from the least to the largest of the sorted values."""
    return np.linspace(values[0], values[-1], count)


def density(values: Floats, count: int) -> Floats:
    """First centroids at equal shares of the sorted values: their quantiles (i + 1/2) / count."""
    return values[(np.arange(count) * 2 + 1) * len(values) // (2 * count)]


def drawn(values: Floats, count: int, generator: np.random.Generator) -> Floats:
    """First centroids drawn from the sorted values, each place at most once."""
    return values[np.sort(generator.choice(len(values), min(count, len(values)), replace=False))]


def kmeans(values: Floats, centroids: Floats, iterations: int = ITERATIONS) -> Clusters:
    """Lloyd's iterations until no value changes its cluster, or so many times.

    A value halfway between two centroids belongs to the lower. A centroid that nothing is nearest to stays where it
    is, and is left out in the end if nothing has come to it.

    Args:
        values: ascending, finite, (n,), at least one.
        centroids: the first ones, ascending, (k,).
        iterations: at most so many means are taken of each cluster.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    begins = _begins(values, centroids)
    for _ in range(iterations):
        counts = np.diff(begins)
        centroids = np.where(counts > 0, np.diff(sums[begins]) / np.maximum(counts, 1), centroids)
        moved = _begins(values, centroids)
        if np.array_equal(moved, begins):
            break
        begins = moved
    used = np.diff(begins) > 0
    begins = np.append(begins[:-1][used], len(values))
    return Clusters(means(values, begins), begins)


def _begins(values: Floats, centroids: Floats) -> NDArray[np.intp]:
    halfway: Any = (centroids[1:] + centroids[:-1]) / 2
    return np.concatenate([[0], np.searchsorted(values, halfway, side="right"), [len(values)]])


def means(values: Floats, begins: NDArray[np.intp]) -> Floats:
    """The mean of each cluster, summed directly: the difference of two large sums has lost the last digits."""
    return np.array([values[start:stop].mean() for start, stop in pairwise(begins)])
