"""Records of `starfire train`: its plan, its progress, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PlanLayer:
    """One layer's part of the plan, at the era's end.

    Args:
        rule: what goes, in words ("6 of 9 in each window").
        left: weights that stay.
        macs: multiply-accumulates of one image, dense.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rule: str
    weights: int
    left: int
    macs: int

    @property
    def sparsity(self) -> float:
        """Dead weights over all weights of the layer."""
        return 1 - self.left / self.weights


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The plan of a run.

    Args:
        settings: (name, value) of the resolved configuration, for people.
        timeline: (epoch, what happens there).
        left_out: (layer or parameter, why it is not pruned).
        dense_flops: of the whole training, did all weights stay alive.
        cost_share: how much of that live weights need, as far as the era tells; None where it does not.
        may_skip: whether steps may come to go over live weights only.
        dense_seconds: of all forward and backward passes over all weights, measured here; None where they were not.
    """

    settings: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    layers: tuple[PlanLayer, ...]
    left_out: tuple[tuple[str, str], ...]
    timeline: tuple[tuple[float, str], ...]
    parameters: int
    macs: int
    dense_flops: int
    cost_share: float | None
    may_skip: bool = False
    dense_seconds: float | None = None

    @property
    def prunable(self) -> int:
        """The number of weights in all prunable layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def dead(self) -> int:
        """The number of weights that will be dead."""
        return sum(layer.weights - layer.left for layer in self.layers)

    @property
    def macs_left(self) -> int:
        """Multiply-accumulates of one image by live weights."""
        return self.macs - sum(round(layer.macs * layer.sparsity) for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Started:
    """The start, or the resumption, of training in `run` after `step` of `steps` optimizer steps."""

    run: Path
    epoch: int
    epochs: int
    step: int
    steps: int
    steps_per_epoch: int
    resumed: bool
    notes: tuple[str, ...]
    rounds: int = 1


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A line for the user about something that turned out while training."""

    text: str


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Progress within an epoch: running means over its steps so far, accuracies as fractions."""

    epoch: int
    batch: int
    step: int
    loss: float
    top1: float
    threshold: float
    sparsity: float
    images_per_second: float
    training_flops: int | None = None  # of the run so far, by live weights
    dense_flops: int | None = None  # the same, had all weights stayed alive


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One row of metrics.jsonl; accuracies and sparsities as fractions, times in seconds."""

    epoch: int
    step: int
    threshold: float
    sparsity_prunable: float
    sparsity_total: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    val_top5: float
    lr: float
    images_per_second: float
    seconds: float
    mask_seconds: float
    best: bool
    macs: int | None = None  # of one image by live weights, at the end of the epoch
    train_macs: int | None = None  # of one pass over the epoch's images, by the weights that were live
    training_flops: int | None = None  # of the run so far, by live weights
    dense_flops: int | None = None  # the same, had all weights stayed alive
    elapsed_seconds: float | None = None  # of the run so far, training and validation
    sparse_flops: int | None = None  # of `training_flops`, what loops over live weights have computed
    sparse_seconds: float | None = None  # of the steps that they have computed
    robust_top1: float | None = None
    round: int | None = None  # of training, where a method has several, from 1; epochs count on over all
    gradient_bytes: int | None = None  # that each of several processes sent in a step, on average
    memory_bytes: int | None = None  # of a CUDA device, the most that tensors have taken so far
    parameters: int | None = None  # of the network, where it shrinks while it trains


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The early end of training, with its state saved: on a signal, or by `--max-steps` (signal 0).

    `command` is what goes on from there. Loss, accuracy and speed are those of the epoch under way, so far; None where
    it has not begun.
    """

    signal: int
    checkpoint: Path
    command: tuple[str, ...]
    epoch: int
    step: int
    steps: int
    loss: float | None = None
    top1: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The end of training; the numbers are the best checkpoint's."""

    run: Path
    checkpoint: Path
    val_top1: float
    val_top5: float
    target: float | None
    sparsity_prunable: float
    sparsity_total: float
    epochs: int
    seconds: float
    images_per_second: float
    training_flops: int | None = None  # of all epochs, by live weights
    dense_flops: int | None = None  # the same, had all weights stayed alive
    notes: tuple[str, ...] = ()


Record = TrainingPlan | Started | Notice | StepRecord | EpochRecord | Stopped | Finished
