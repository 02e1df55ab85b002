"""Gradients of all weights by layer, of dead ones too, and their running averages, which methods regrow by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from starfire_cli.pruning.kernels.torch import is_finite

_DECAY = 0.9


class GradientAverages:
    """Sums of all gradients so far, each step's 0.9 times the last one's.

    The optimizer's own average is zero where weights are dead, so this is another one.

    Args:
        weights: by key.

    Attributes:
        by_key: the averages, of the weights' shapes; empty before the first step.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self._weights = weights
        self.by_key: dict[str, Tensor] = {}

    def add_step(self) -> None:
        """Add the gradients that the weights have now, unless one of them overflowed."""
        gradients = gradients_of(self._weights)
        if not all_finite(gradients):
            return
        for key, gradient in gradients.items():
            if key not in self.by_key:
                self.by_key[key] = torch.zeros_like(gradient)
        torch._foreach_mul_(list(self.by_key.values()), _DECAY)
        torch._foreach_add_([self.by_key[key] for key in gradients], list(gradients.values()))

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Go on with what a checkpoint remembered, as far as it is of these weights."""
        for key, average in averages.items():
            if key in self._weights:
                self.by_key[key] = torch.empty_like(self._weights[key]).copy_(average)

    def release(self) -> None:
        """Let go of all of them."""
        self.by_key = {}


def gradients_of(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradients by layer; zeros where a weight has none, as it took no part in the loss."""
    return {key: torch.zeros_like(w) if w.grad is None else w.grad for key, w in weights.items()}


def all_finite(gradients: Mapping[str, Tensor]) -> bool:
    """Whether none holds NaN or inf."""
    sums = [gradient.sum() for gradient in gradients.values()]
    if not sums or bool(torch.stack(sums).isfinite().all()):
        return True
    return all(map(is_finite, gradients.values()))  # sums may overflow by themselves
