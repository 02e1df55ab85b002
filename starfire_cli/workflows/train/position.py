"""The position of a run: finished epochs and steps, and the running sums of the epoch under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Past:
    """Sums over all of the run so far; but for what is computed sparsely, over its finished epochs.

    Args:
        known: whether they are; not in a run that an earlier version began.
        macs: multiply-accumulates by live weights of one pass over the images.
        images: that were trained on.
        seconds: of training and validation.
        sparse_macs: of `macs`, what was computed by loops that leave out dead weights, the epoch under way included.
        sparse_seconds: of the steps that used such loops, likewise.
    """

    known: bool = True
    macs: int = 0
    images: int = 0
    seconds: float = 0.0
    sparse_macs: int = 0
    sparse_seconds: float = 0.0


@dataclass
class Position:
    """The position of training: what is finished, and the running sums of the epoch under way."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the next one
    step: int = 0  # finished optimizer steps
    images: int = 0
    loss_sum: float = 0.0
    correct: float = 0.0
    seconds: float = 0.0
    mask_seconds: float = 0.0
    start_macs: int | None = None  # by live weights, of one image, at the start of the epoch under way
    first_macs: int | None = None  # the same after its first step
    end_macs: int | None = None  # the same after its last step, where channels were removed then
    read_macs: int = 0  # by dead weights, of one image, over the steps that read their gradients
    past: Past = field(default_factory=lambda: Past())
    dense_macs: int | None = None  # of one image by the network as the run began with it
    best_over: bool = False  # whether the best checkpoint so far was taken after the era
    best_top1: float = -1.0

    def restore(self, saved: dict[str, Any]) -> None:
        """Go to where a checkpoint was. Raises TypeError for a field there is not."""
        past = Past(**saved["past"]) if "past" in saved else Past(known=not saved.get("step"))
        for name, value in vars(Position(**saved | {"past": past})).items():
            setattr(self, name, value)

    def end_epoch(self, macs: int, seconds: float) -> None:
        """Add the epoch under way, of so many multiply-accumulates and seconds, to the past; its sums become zero."""
        self.past.macs, self.past.images = self.past.macs + macs, self.past.images + self.images
        self.past.seconds += seconds
        self.batch, self.images, self.loss_sum, self.correct = 0, 0, 0.0, 0.0
        self.seconds, self.mask_seconds = 0.0, 0.0
        self.start_macs, self.first_macs, self.end_macs, self.read_macs = None, None, None, 0
