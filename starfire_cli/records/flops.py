"""FLOPs of training and inference, from multiply-accumulates and from the rows of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FORWARD = 2
"""FLOPs of a multiply-accumulate: a multiplication and an addition."""

TRAINING = 3 * FORWARD
"""Of a multiply-accumulate in training: forward, and backward to the inputs and to the weights, each as many."""

COUNTING = (
    "FLOPs of convolutions and linear layers by live weights, counted from the masks: 2 a multiply-accumulate "
    "in inference, 6 in training (forward, and backward to inputs and to weights). A layer that is not pruned yet "
    "counts dense, and so does the pass to the weights in a step that reads the gradients of dead ones. What the masks "
    "themselves cost does not count"
)


def training_flops(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """FLOPs of all these epochs; None where one of them does not say."""
    macs = [count for row in rows if isinstance(count := row.get("train_macs"), int)]
    return TRAINING * sum(macs) if macs and len(macs) == len(rows) else None


def inference_flops(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """FLOPs of one image after the last epoch; None where the row does not say."""
    macs = rows[-1].get("macs") if rows else None
    return FORWARD * macs if isinstance(macs, int) else None
