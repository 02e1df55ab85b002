"""Confidence intervals for an accuracy, and for the difference between two networks on the same images."""

from __future__ import annotations

from math import comb, sqrt

import numpy as np
import numpy.typing as npt

_Z = 1.959963984540054  # a standard normal lies within +-_Z with probability 0.95


def wilson(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy (Wilson 1927); unlike the usual one it never leaves [0, 1]."""
    share, spread = correct / images, _Z * _Z / images
    centre = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * sqrt(share * (1 - share) / images + spread / (4 * images))
    # At its two ends the interval is exact; rounding would leave it 1e-17 outside.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == images else centre + half)


def mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """Two-sided p-values, exact and mid-p, that neither network is better (McNemar 1947; Fagerland et al. 2013).

    Args:
        only_first: images that only the first gets right.
        only_second: images that only the second gets right; were both alike, each such image would be a fair coin.
    """
    tosses, fewer = only_first + only_second, min(only_first, only_second)
    if tosses == 0:
        return 1.0, 1.0
    # Whole numbers until the one division: no rounding however many tosses there are.
    tail, term = 0, 1
    for heads in range(fewer + 1):
        tail += term
        term = term * (tosses - heads) // (heads + 1)
    whole, at = 2**tosses, comb(tosses, fewer)
    exact = 1.0 if 2 * tail >= whole else 2 * tail / whole
    # When the counts are equal the two tails share their middle.
    mid = 1 - at / whole / 2 if only_first == only_second else (2 * tail - at) / whole
    return exact, mid


def bootstrap(changes: npt.NDArray[np.int8], *, seed: int, resamples: int = 10_000) -> tuple[float, float]:
    """The 95 % percentile interval of a mean, by resampling the images with replacement.

    Args:
        changes: a small whole number an image, (N,): +1 where only the first is right, -1 where only the second.
        seed: of the draws.
        resamples: how many data sets are drawn.
    """
    # Images with the same number are alike, so the counts of a drawn data set are multinomial: draw those.
    kinds, counts = np.unique(changes, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(changes), counts / len(changes), size=resamples)
    low, high = np.percentile(drawn @ kinds.astype(np.float64) / len(changes), [2.5, 97.5])
    return float(low), float(high)
