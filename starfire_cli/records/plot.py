"""Records of `starfire plot`: training runs, networks layer by layer, accuracies under attack.

Plain values that lie below the workflow that collects them and the report that draws them. Accuracies and sparsities
are fractions; what a file did not say is None, or NaN in a column.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from starfire_cli.records.flops import TRAINING
from starfire_cli.records.inspect import Inspection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_SECONDS = ("elapsed_seconds", "seconds", 1)


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """One training run, from config.json and metrics.jsonl alone.

    Args:
        path: the run folder.
        method, fc: specs of the pruning methods ("window:max_nonzero=2"); "pruned" or "shrunk" where a run pruned
            nothing itself and its network was not dense.
        target: final threshold, or what is dead of a network that came in pruned; 0 is a dense run.
        era: (first, last) epoch of the pruning era; None for a run that prunes nothing.
        model, data: their specs.
        epochs: how many were asked for.
        lr_drops: epochs after which the learning rate falls.
        start_sparsity: before the first step, of methods that begin sparse.
        settings: all that decides the result but for the seed, resolved; equal settings are the same experiment.
        rows: of metrics.jsonl, by epoch; a value that is no number is left out.
        facts: versions, hardware, command, created, as config.json has them.
        checkpoint: the run's best network, or its last; None where neither is there.
        notes: what was wrong with its files, a sentence each.
    """

    path: Path
    method: str = "?"
    fc: str = "?"
    target: float | None = None
    era: tuple[float, float] | None = None
    model: str = "?"
    data: str = "?"
    epochs: int | None = None
    lr_drops: tuple[float, ...] = ()
    seed: int | None = None
    start_sparsity: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Mapping[str, float], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return os.path.basename(os.path.abspath(self.path)) or str(self.path)  # also of "." and ".."

    @property
    def dense(self) -> bool:
        """Whether nothing is pruned."""
        return self.target == 0

    @property
    def finished(self) -> bool:
        """Whether the last epoch has been reached."""
        return bool(self.rows) and (self.epochs is None or self.rows[-1]["epoch"] >= self.epochs)

    def column(self, key: str) -> list[float]:
        """One value of each row; NaN where it is missing."""
        return [row.get(key, math.nan) for row in self.rows]

    def has(self, key: str) -> bool:
        """Whether any row has the value."""
        return any(key in row for row in self.rows)

    def at(self, epoch: int, key: str) -> float | None:
        """The value after an epoch; None where it is missing."""
        return next((row.get(key) for row in self.rows if row["epoch"] == epoch), None)

    def spent(self, what: Literal["flops", "seconds"]) -> dict[float, float]:
        """Training FLOPs by live weights, or seconds, from the start to the end of each epoch.

        Rows of earlier versions say these of their epochs alone, which are added up; empty where one does not.
        """
        total, single, by = ("training_flops", "train_macs", TRAINING) if what == "flops" else _SECONDS
        found: dict[float, float] = {}
        so_far = 0.0
        for row in self.rows:
            if total in row:
                so_far = row[total]
            elif single in row and (found or row["epoch"] == 1):
                so_far += by * row[single]
            else:
                return {}
            found[row["epoch"]] = so_far
        return found

    def best(self) -> Mapping[str, float] | None:
        """The row of the checkpoint that `train` calls best: highest top-1 of those that have met the target."""
        rows = [row for row in self.rows if "val_top1" in row]
        over = [row for row in rows if self.era is None or row["epoch"] >= self.era[1]]
        return max(over or rows, key=lambda row: row["val_top1"], default=None)


@dataclass(frozen=True, kw_only=True)
class MaskPicture:
    """The mask of one layer, to be drawn.

    Args:
        name: of the layer.
        window: (R, S).
        kept_KC: how many weights each kernel keeps, (K, C).
        corner_KCRS: the mask itself of the first kernels, (k, c, R, S), at most 24 x 24 of them.
    """

    name: str
    window: tuple[int, int]
    kept_KC: NDArray[np.int64]
    corner_KCRS: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class NetworkPicture:
    """One checkpoint to be drawn: its inspection, its masks, and its title.

    Args:
        title: method and target, or the file's name.
        method: the spec, where the metadata says it.
        run: the run folder that it lies in, if it does.
        masks: the layers that were asked for.
        packed: (file, bytes) of the packed file beside it; None where there is none.
    """

    title: str
    method: str
    inspection: Inspection
    run: Path | None = None
    masks: tuple[MaskPicture, ...] = ()
    packed: tuple[Path, int] | None = None

    @property
    def size(self) -> int:
        """Bytes of the packed file, or an estimate."""
        return self.packed[1] if self.packed else self.inspection.bytes_packed


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Accuracy at one size of the perturbation, with its 95 % interval."""

    eps: float
    top1: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class RobustCurve:
    """One network under one attack, from the file that `attack` wrote.

    Args:
        file: where this was read.
        title: of the network.
        checkpoint: as the file names it.
        attack: its spec.
        norm: "linf" or "l2".
        images: how many were attacked.
        points: by size, ascending.
        noise: the same for noise of the same size; may be empty.
        warnings: why the numbers may flatter the network.
    """

    file: Path
    title: str
    checkpoint: str
    attack: str
    norm: str
    images: int
    points: tuple[CurvePoint, ...]
    noise: tuple[CurvePoint, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Material:
    """All records behind a set of paths.

    Args:
        runs: in the order given.
        networks: checkpoints that were looked into.
        curves: results of attacks.
        notes: what was left out and why, a sentence each.
    """

    runs: tuple[RunHistory, ...] = ()
    networks: tuple[NetworkPicture, ...] = ()
    curves: tuple[RobustCurve, ...] = ()
    notes: tuple[str, ...] = ()
