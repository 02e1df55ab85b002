"""What `bench` finds out: plain records that the workflow makes and the report shows.

They lie below both. Times are in seconds, shares and differences are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

CLOSE = 1e-3
"""Of the largest value: who differs by more from the dense network computes something else."""


@dataclass(frozen=True, kw_only=True)
class BenchProgress:
    """What is going on."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all ways have in common.

    Args:
        path: the checkpoint; `title` a name for people.
        input: (channels, height, width) of an image.
        batches: images of a call, one for each `BatchTimings` that follows.
        threads: of every way.
        processor: its name, and the widest vectors that torch uses on it.
        versions: of everything that takes part.
        macs, macs_left: multiply-accumulates on one image, all and those by weights that are not zero.
        notes: what had to be assumed, a sentence each.
    """

    path: Path
    title: str
    input: tuple[int, int, int]
    batches: tuple[int, ...]
    threads: int
    processor: str
    versions: Mapping[str, str]
    macs: int
    macs_left: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One way to run the network.

    Args:
        name: for programs; `label` for people.
        sparse: whether it makes use of zeros.
        rounds: seconds of each call, by round; all ways took part in all rounds.
        ready: seconds until it could be called: compiling, converting, measuring.
        difference: the largest difference from the dense outputs, over their largest value.
        problem: why it was not run; then all others are empty.
    """

    name: str
    label: str
    sparse: bool = False
    rounds: tuple[tuple[float, ...], ...] = ()
    ready: float = 0.0
    difference: float = 0.0
    problem: str | None = None

    @property
    def calls(self) -> tuple[float, ...]:
        """Seconds of all calls."""
        return tuple(seconds for taken in self.rounds for seconds in taken)

    @property
    def median(self) -> float:
        """Half of the calls took longer."""
        return median(self.calls)

    @property
    def p90(self) -> float:
        """A tenth of the calls took longer."""
        return quantiles(self.calls, n=10, method="inclusive")[-1] if len(self.calls) > 1 else self.median

    @property
    def counts(self) -> bool:
        """Whether it ran, and computed what the dense network does."""
        return self.problem is None and self.difference <= CLOSE  # not for NaN


@dataclass(frozen=True, kw_only=True)
class LayerTiming:
    """One layer in the sparse network.

    Args:
        name: of the module.
        shape: of its weight.
        live: weights that are not zero.
        how: "kernels" or "taps" for the sparse loops; "dense" or "torch" for torch.
        seconds: what each way took for one image when the ways were measured; empty where there was no choice.
        macs: multiply-accumulates on one image with all weights.
    """

    name: str
    shape: tuple[int, ...]
    live: int
    how: str
    seconds: Mapping[str, float]
    macs: int

    @property
    def density(self) -> float:
        """Live over all weights."""
        return self.live / max(1, math.prod(self.shape))

    @property
    def macs_left(self) -> int:
        """Multiply-accumulates by live weights: each is used as often as any other."""
        return self.macs * self.live // max(1, math.prod(self.shape))

    @property
    def faster(self) -> float | None:
        """Time of the dense way over that of the chosen one; None where they were not measured."""
        dense, own = self.seconds.get("dense"), self.seconds.get(self.how)
        return dense / own if dense and own else None


@dataclass(frozen=True, kw_only=True)
class BatchTimings:
    """All ways with `batch` images a call; `layers` are those of the sparse network, if it ran."""

    batch: int
    timings: tuple[Timing, ...]
    layers: tuple[LayerTiming, ...] = ()

    @property
    def ours(self) -> Timing | None:
        """The sparse network, where it counts."""
        return next((timing for timing in self.timings if timing.sparse and timing.counts), None)

    @property
    def best_dense(self) -> Timing:
        """The fastest of those that make no use of zeros and compute the same; the plain network always does."""
        return min((t for t in self.timings if not t.sparse and t.counts), key=lambda t: t.median)

    def speedup(self, other: Timing) -> float | None:
        """Median time of `other` over that of the sparse network."""
        return other.median / self.ours.median if self.ours and other.calls else None

    def speedup_range(self, other: Timing) -> tuple[float, float] | None:
        """The least and the greatest of that in a single round."""
        if self.ours is None or not other.rounds:
            return None
        ratios = [median(a) / median(b) for a, b in zip(other.rounds, self.ours.rounds, strict=True)]
        return min(ratios), max(ratios)
