"""What `prune-mask` comes to: plain records that a workflow makes and the report shows; accuracies are fractions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starfire_cli.records.inspect import Inspection


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """A network pruned once, never trained after: the target, its true sparsity, and what it still gets right.

    Args:
        layer: the only layer pruned; None for all.
    """

    layer: str | None
    target: float
    sparsity: float
    top1: float
    top5: float
    loss: float
    images: int


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """What removing dead channels for good came to.

    Args:
        parameters, macs: before and after; macs on one image of `input`.
        milliseconds: the fastest of twenty forward passes of `batch` images on `device`, before and after.
        difference: the largest difference of any output on random images, over the largest output, in float64.
        difference_real: likewise in the network's own precision, on images of the data; None without data.
        stayed: reason -> how many dead channels stay for it.
        declined: why nothing was done; None if it was.
    """

    parameters: tuple[int, int]
    macs: tuple[int, int]
    input: tuple[int, int, int]
    milliseconds: tuple[float, float]
    batch: int
    device: str
    difference: float
    difference_real: float | None
    stayed: Mapping[str, int]
    declined: str | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How good a network is on a data set's validation images; accuracies are fractions."""

    top1: float
    top5: float
    loss: float
    images: int
    data: str


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A checkpoint that was pruned once.

    Args:
        out: where it was written.
        result: what was read back from there.
        sparsity_before: over the same prunable weights.
        left_out: (layer, why it was not pruned).
        did: what else was done, a sentence each.
        eliminated: linear weights that died by elimination; None if not asked for.
        before, after: accuracies; None without data.
        fine_tuning: the words of the command that trains on from here, on what the file records.
        lacking: options which that command needs besides, since the file does not say.
    """

    out: Path
    result: Inspection
    sparsity_before: float
    left_out: tuple[tuple[str, str], ...]
    did: tuple[str, ...]
    eliminated: int | None = None
    shrunk: Shrunk | None = None
    before: Measured | None = None
    after: Measured | None = None
    fine_tuning: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PruneProgress:
    """A line on what is going on, for people who wait."""

    text: str
