"""Records of `starfire bench`: engines, timings and comparisons.

Times are in seconds, shares and differences are fractions.
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
    """A line of progress."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The conditions that all engines share.

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
    """The timing of one engine.

    Args:
        name: for programs; `label` for people.
        sparse: whether it makes use of zeros.
        rounds: seconds of each call, by round; every engine takes part in every round.
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
        """Seconds of all calls, of all rounds."""
        return tuple(seconds for taken in self.rounds for seconds in taken)

    @property
    def median(self) -> float:
        """The median of all calls in seconds."""
        return median(self.calls)

    @property
    def p90(self) -> float:
        """The 90th percentile of all calls in seconds."""
        return quantiles(self.calls, n=10, method="inclusive")[-1] if len(self.calls) > 1 else self.median

    @property
    def counts(self) -> bool:
        """Whether it ran, and its output agrees with the dense network's."""
        return self.problem is None and self.difference <= CLOSE  # not for NaN


@dataclass(frozen=True, kw_only=True)
class LayerTiming:
    """The timing of one layer in the sparse network.

    Args:
        name: of the module.
        shape: of its weight.
        live: weights that are not zero.
        how: "kernels" or "taps" for the sparse loops; "dense" or "torch" for torch; "onnxruntime" where that runs all.
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
        """Live weights over all weights."""
        return self.live / max(1, math.prod(self.shape))

    @property
    def macs_left(self) -> int:
        """Multiply-accumulates by live weights; each weight of a layer is used equally often."""
        return self.macs * self.live // max(1, math.prod(self.shape))

    @property
    def faster(self) -> float | None:
        """Dense time over the chosen loop's time; None where they were not measured."""
        dense, own = self.seconds.get("dense"), self.seconds.get(self.how)
        return dense / own if dense and own else None


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """The engine that the sparse network chose for images of one shape.

    Args:
        name: "starfire" for loops and what torch does for single layers; else the dense engine that runs all.
        seconds: of a call, by the name of each engine that was timed to choose.
        images: of such a call.
    """

    name: str
    seconds: Mapping[str, float]
    images: int


@dataclass(frozen=True, kw_only=True)
class BatchTimings:
    """All engines with `batch` images a call; `layers` and `engine` are those of the sparse network, if it ran."""

    batch: int
    timings: tuple[Timing, ...]
    layers: tuple[LayerTiming, ...] = ()
    engine: EngineChoice | None = None

    @property
    def ours(self) -> Timing | None:
        """The sparse network's timing, where it counts."""
        return next((timing for timing in self.timings if timing.sparse and timing.counts), None)

    @property
    def best_dense(self) -> Timing:
        """The fastest dense engine whose output agrees; the plain network's always does."""
        return min((t for t in self.timings if not t.sparse and t.counts), key=lambda t: t.median)

    def speedup(self, other: Timing) -> float | None:
        """Median time of `other` over that of the sparse network."""
        return other.median / self.ours.median if self.ours and other.calls else None

    def speedup_range(self, other: Timing) -> tuple[float, float] | None:
        """The least and the greatest speedup in a single round."""
        if self.ours is None or not other.rounds:
            return None
        ratios = [median(a) / median(b) for a, b in zip(other.rounds, self.ours.rounds, strict=True)]
        return min(ratios), max(ratios)
