"""Records of `starfire compare`: cells, their progress and figures, and the rows of methods.

A cell is one training run: a method at a target with a seed. A row is a method at a target over all seeds. Accuracies
and sparsities are fractions, times seconds, and a FLOP is a multiplication or an addition: two a multiply-accumulate.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

_LONGEST = 120  # characters of a folder's name


@dataclass(frozen=True, kw_only=True)
class CompareCell:
    """One training run of a comparison.

    Args:
        method: its spec, without what is default.
        target: None for a dense network, and for a method that looks at none.
        seed: of the run.
        epochs: where the comparison chose them; None for as many as the options say.
        label: what else sets it apart, for its name: "-e3".
    """

    method: str
    target: float | None
    seed: int
    epochs: int | None = None
    label: str = ""

    @property
    def title(self) -> str:
        """`window 0.8`, `dense`, or `dense, 7 epochs`: the same for all seeds."""
        text = self.method if self.target is None else f"{self.method} {self.target:.12g}{self.label}"
        return text if self.epochs is None else f"{text}, {self.epochs} epoch{'' if self.epochs == 1 else 's'}"

    @property
    def name(self) -> str:
        """The name of its run folder: `window-t0.8-s0`."""
        target = "" if self.target is None else f"-t{self.target:.12g}"
        epochs = "" if self.epochs is None else f"-e{self.epochs}"
        text = re.sub(r"[^A-Za-z0-9.,+=_-]", "-", f"{self.method}{target}{epochs}{self.label}-s{self.seed}")
        if len(text) <= _LONGEST:
            return text
        return f"{text[: _LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Accuracy under one attack, by eps; `labels` are the eps as they were written.

    Args:
        attack: its spec.
        images: how many were attacked.
        points: (eps, top-1), ascending; the first is eps 0.
    """

    attack: str
    images: int
    labels: tuple[str, ...]
    points: tuple[tuple[float, float], ...]

    def at(self, label: str) -> float | None:
        """Top-1 at an eps as it was written; None where it was not measured."""
        return next((top1 for name, (_, top1) in zip(self.labels, self.points, strict=True) if name == label), None)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median seconds of one image on the CPU.

    Args:
        dense: by torch, in the faster memory layout.
        sparse: by live weights; None where that does not run.
        problem: why not.
        threads: of both.
    """

    dense: float
    sparse: float | None
    problem: str | None = None
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class CellFigures:
    """Figures of one trained cell, all of the same checkpoint but for `top1_best`.

    Args:
        top1: on the validation images.
        top1_best: of the best epoch, which was chosen on the same images.
        epochs: trained.
        training_flops: of all epochs (docs/compare.md).
        inference_flops: of one image, by live weights.
        seconds: of training and validation.
        memory: peak bytes of the process; None where it trained beside others in one process.
        threads: of the process.
        curve: top-1 after each epoch.
        facts: command, versions and hardware, as config.json has them.
    """

    top1: float
    top1_best: float
    sparsity_prunable: float
    sparsity_total: float
    epochs: int
    training_flops: int | None
    inference_flops: int | None
    seconds: float
    memory: int | None = None
    threads: int | None = None
    packed_bytes: int | None = None
    robustness: Robustness | None = None
    latency: Latency | None = None
    curve: tuple[float, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The mean over seeds of the differences from another network of the same seed.

    Args:
        mean: of the differences.
        half_width: of its 95 % interval (Student's t); None for a single seed.
        seeds: how many pairs there are.
    """

    mean: float
    half_width: float | None
    seeds: int


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A method at a target over its seeds.

    Args:
        title: of its cells.
        method: its spec.
        target: None for dense, and for a method that looks at none.
        figures: by seed, of the cells that are trained.
        dense: figures of the dense network of each seed that it is held against; empty for the dense row itself.
    """

    title: str
    method: str
    target: float | None
    figures: Mapping[int, CellFigures]
    dense: Mapping[int, CellFigures]
    top1_difference: PairedDifference | None = None
    attack_differences: Mapping[str, PairedDifference | None] = field(default_factory=dict)

    def mean(self, name: str) -> float | None:
        """The mean over seeds of one of the figures; None where no cell has it."""
        values = [value for one in self.figures.values() if (value := getattr(one, name)) is not None]
        return mean(values) if values else None

    def robust(self, label: str) -> float | None:
        """The mean accuracy at an eps as it was written."""
        found = [one.robustness.at(label) for one in self.figures.values() if one.robustness is not None]
        values = [top1 for top1 in found if top1 is not None]
        return mean(values) if values else None

    @property
    def latency(self) -> Latency | None:
        """That of the first seed that has one."""
        return next((one.latency for one in self.figures.values() if one.latency is not None), None)


@dataclass(frozen=True, kw_only=True)
class CompareStarted:
    """The start: the folder, all cells in order, which are done already, and lines for the user."""

    folder: Path
    cells: tuple[CompareCell, ...]
    done: tuple[CompareCell, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CompareNote:
    """A line for the user."""

    text: str


@dataclass(frozen=True, kw_only=True)
class CellProgress:
    """Progress of one cell under way.

    Args:
        done: epochs, with fractions.
        total: epochs.
        text: what is being done, or how good it is.
        memory: peak bytes of the cell's process and its workers so far.
        gpu: (bytes it has taken of its GPU, bytes that are free there).
    """

    cell: CompareCell
    done: float
    total: float
    text: str
    memory: int | None = None
    gpu: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class CellDone:
    """A cell whose figures are all there."""

    cell: CompareCell
    figures: CellFigures


@dataclass(frozen=True, kw_only=True)
class CellFailed:
    """A cell that cannot be trained or measured."""

    cell: CompareCell
    problem: str


@dataclass(frozen=True, kw_only=True)
class CompareStopped:
    """The early end, on a signal, with everything saved; `command` goes on from there."""

    signal: int
    done: int
    total: int
    command: str


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The end.

    Args:
        folder: where everything is.
        rows: dense first, then in the order of the methods and targets.
        eps: that were attacked, as written.
        failed: cells without figures, and why.
        document: the contents of compare.json.
        notes: lines for the user.
    """

    folder: Path
    rows: tuple[MethodRow, ...]
    eps: tuple[str, ...]
    failed: tuple[CellFailed, ...]
    document: Mapping[str, Any]
    notes: tuple[str, ...] = ()


CompareRecord = CompareStarted | CompareNote | CellProgress | CellDone | CellFailed | CompareStopped | Compared
