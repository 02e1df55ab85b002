"""The position of a run: finished epochs and steps, and the running sums of the epoch under way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
    best_over: bool = False  # whether the best checkpoint so far was taken after the era
    best_top1: float = -1.0

    def restore(self, saved: dict[str, Any]) -> None:
        """Go to where a checkpoint was. Raises TypeError for a field there is not."""
        for name, value in vars(Position(**saved)).items():
            setattr(self, name, value)

    def begin_epoch(self) -> None:
        """Set the sums of the epoch under way to zero."""
        self.batch, self.images, self.loss_sum, self.correct = 0, 0, 0.0, 0.0
        self.seconds, self.mask_seconds = 0.0, 0.0
        self.start_macs, self.first_macs, self.end_macs, self.read_macs = None, None, None, 0
