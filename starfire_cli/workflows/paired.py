"""How sure is an accuracy, and a difference between two networks that saw the same images? Counts in, intervals out."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, sqrt

import numpy as np

_Z = 1.959963984540054  # a standard normal lies within +-_Z with probability 0.95


def wilson(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy (Wilson 1927); unlike the usual one it never leaves [0, 1]."""
    share, spread = correct / images, _Z * _Z / images
    centre = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * sqrt(share * (1 - share) / images + spread / (4 * images))
    # At its two ends the interval is exact; rounding would leave it 1e-17 outside.
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == images else centre + half)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two networks on the same images.

    Args:
        both: images that both get right.
        only_first: images that only the first gets right.
        only_second: images that only the second gets right.
        images: how many there are.
        difference: accuracy of the first less that of the second.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        p_exact: McNemar's exact test that neither is better.
        p_mid: the same, mid-p: less cautious, closer to its nominal error rate.
    """

    both: int
    only_first: int
    only_second: int
    images: int
    difference: float
    low: float
    high: float
    p_exact: float
    p_mid: float


def compare(first: np.ndarray, second: np.ndarray, *, seed: int = 0, resamples: int = 10_000) -> Pair:
    """Compare two networks by which images they get right.

    Args:
        first: bool, (N,): right or wrong, image by image.
        second: the same images, in the same order.
        seed: of the bootstrap.
        resamples: how many data sets the bootstrap draws.
    """
    assert first.shape == second.shape and first.ndim == 1 and len(first)
    images = len(first)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    low, high = bootstrap(only_first, only_second, images, seed=seed, resamples=resamples)
    p_exact, p_mid = mcnemar(only_first, only_second)
    return Pair(
        both=int((first & second).sum()),
        only_first=only_first,
        only_second=only_second,
        images=images,
        difference=(only_first - only_second) / images,
        low=low,
        high=high,
        p_exact=p_exact,
        p_mid=p_mid,
    )


def mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """Two-sided p-values, exact and mid-p, of a fair coin giving these counts (McNemar 1947; Fagerland et al. 2013)."""
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


def bootstrap(
    only_first: int, only_second: int, images: int, *, seed: int, resamples: int = 10_000
) -> tuple[float, float]:
    """The 95 % percentile interval of the difference when the images are drawn again, with replacement.

    A drawn image is one of three kinds, so the counts of a drawn data set are multinomial: drawing them is drawing it.
    """
    shares = [only_first / images, only_second / images, 1 - (only_first + only_second) / images]
    drawn = np.random.default_rng(seed).multinomial(images, shares, size=resamples)
    differences = (drawn[:, 0] - drawn[:, 1]) / images
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)
