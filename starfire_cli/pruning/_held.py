"""Which tensors go with the weights, and are they still the same? Asked at each step of an era, so it must be cheap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Held:
    """Where the tensors lie that go with these weights, to see at little cost whether any was replaced."""

    def __init__(self, weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer | None) -> None:
        self._states = optimizer.state if optimizer is not None else {}
        self._many = len(self._states)
        states = [self._states.get(weight, {}) for weight in weights]
        tensors = [list(state_of(weight, optimizer).items()) for weight in weights]
        self._layers = [
            (weight, weight.data_ptr(), state, len(state), held)
            for weight, state, held in zip(weights, states, tensors, strict=True)
        ]

    def still(self, optimizer: torch.optim.Optimizer | None) -> bool:
        """Whether all of them are where they were, and no other came."""
        if optimizer is not None and (optimizer.state is not self._states or len(self._states) != self._many):
            return False
        for weight, lies, state, many, held in self._layers:
            if weight.data_ptr() != lies or len(state) != many:
                return False
            for name, tensor in held:
                if state.get(name) is not tensor:
                    return False
        return True


def state_of(weight: nn.Parameter, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """What an optimizer keeps for each weight of a parameter, by name."""
    state = optimizer.state.get(weight, {}) if optimizer is not None else {}
    return {name: v for name, v in state.items() if isinstance(v, Tensor) and v.shape == weight.shape}
