"""Weights as they were before a method that is sparse from the start pruned them, where a state is loaded later."""

from __future__ import annotations

import torch
from torch import Tensor

from starfire_cli.pruning import Pruner


class UnprunedCopies:
    """Copies of what the first masks of a pruner have zeroed.

    Args:
        core: the pruner.
    """

    def __init__(self, core: Pruner) -> None:
        self._core = core
        self._before: list[tuple[str, Tensor, Tensor]] = []  # layer, tensor, what it held

    def keep(self) -> None:
        """Copy what the pruner is about to zero, if it is."""
        if self._core.starts_sparse:
            self._before = [(k, t.detach(), t.detach().clone()) for k, ts in self._core.zeroed.items() for t in ts]

    def end(self) -> None:
        """Forget the copies at the first step; weights that were loaded since are dead where the masks say so."""
        if self._before:
            self._before = []
            self._core.enforce()

    @torch.no_grad()
    def undo(self) -> None:
        """Give weights, optimizer state and average back what they held, unless they were loaded since."""
        for key, tensor, before in self._before:
            if torch.equal(tensor, before.masked_fill(~self._core.masks[key], 0)):
                tensor.copy_(before)
        self._before = []
