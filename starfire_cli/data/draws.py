"""Random numbers for data, as a function of the seed, the epoch and the image's index.

A counter-based generator: each number is a hash (splitmix64's finaliser) of seed, epoch, image index and the number of
the draw. So nothing depends on the order of calls, on workers, on a device or on torch's generators.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_Words = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def _mix(words: _Words) -> _Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _mixed_in(key: int, part: int) -> int:
    """The same finaliser on one python integer, with `part` added first."""
    word = (key + part * _GOLDEN + _GOLDEN) & _WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _WORD
    return word ^ (word >> 31)


class Draws:
    """The random numbers of some images in one epoch.

    Args:
        seed: of the run.
        epoch: of the training.
        index: (N,) positions of the images in the data set.
    """

    def __init__(self, seed: int, epoch: int, index: Ints) -> None:
        self._key = _mixed_in(_mixed_in(0, seed), epoch)
        self._index = np.asarray(index, dtype=np.int64).astype(np.uint64) * np.uint64(_GOLDEN)
        self._drawn = 0

    def __len__(self) -> int:
        return len(self._index)

    def words(self) -> _Words:
        """(N,) the next draw: 64 random bits an image."""
        key = np.uint64(_mixed_in(self._key, self._drawn))
        self._drawn += 1
        return _mix(_mix(self._index + key) + key)

    def skip(self, draws: int) -> None:
        """Advances by `count` draws."""
        self._drawn += draws

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Floats:
        """(N,) the next draw, uniform in [low, high)."""
        return low + (high - low) * ((self.words() >> np.uint64(11)).astype(np.float64) * 2.0**-53)

    def integers(self, low: int | Ints, high: int | Ints) -> Ints:
        """(N,) the next draw, uniform among low, ..., high (both included; numbers or one an image)."""
        span = np.asarray(high) - np.asarray(low) + 1
        drawn: Ints = np.asarray(low) + np.floor(self.uniform() * span).astype(np.int64)
        return drawn

    def coin(self, probability: float = 0.5) -> npt.NDArray[np.bool_]:
        """(N,) the next draw, True with the given probability."""
        return self.uniform() < probability


def shuffled(count: int, seed: int, epoch: int) -> Ints:
    """(count,) the order of the images in one epoch: their positions sorted by a hash."""
    return np.argsort(Draws(seed, epoch, np.arange(count)).words(), kind="stable")


def choose(labels: Ints, quota: Ints, seed: int) -> npt.NDArray[np.bool_]:
    """(N,) True for `quota[c]` images of each class c: those with the smallest hash of (seed, position)."""
    order = np.lexsort((Draws(seed, 0, np.arange(len(labels))).words(), labels))
    counts = np.bincount(labels, minlength=len(quota))
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(labels), dtype=np.bool_)
    chosen[order] = rank_in_class < np.asarray(quota)[labels[order]]
    return chosen


def spread(counts: Ints, total: int) -> Ints:
    """Counts by class, (C,), that add up to `total`, in proportion to `counts`.

    By largest remainders; ties go to the first class.
    """
    exact = counts * (total / counts.sum())
    quota: Ints = np.floor(exact).astype(np.int64)
    missing = total - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:missing]] += 1
    return quota
