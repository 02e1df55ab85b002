"""Several optimizers of one model, seen as one: the state of all parameters that any of them holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# With a gradient of zero and a state of zero these leave a weight of zero where it is, so that masking gradients and
# clearing state when a weight dies is all that has to be done. Any other optimizer is enforced after every step.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
)


class JointOptimizers:
    """The optimizers of one model.

    Args:
        optimizers: no two of them hold the same parameter.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = tuple(optimizers)

    @property
    def state(self) -> dict[Tensor, Any]:
        """The state of each parameter that has one; the dicts inside are the optimizers' own."""
        return {weight: state for optimizer in self.optimizers for weight, state in optimizer.state.items()}


AnyOptimizer = torch.optim.Optimizer | JointOptimizers


def keeps_zeros(optimizer: AnyOptimizer) -> bool:
    """Whether a weight of zero stays zero where its gradient and its state are."""
    every = optimizer.optimizers if isinstance(optimizer, JointOptimizers) else (optimizer,)
    return all(type(one) in ELEMENTWISE for one in every)
