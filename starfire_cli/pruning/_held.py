"""Which tensors go with the weights, and are they still the same? Asked at each step of an era, so it must be cheap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Held:
    """Where all tensors lie that go with these weights, to see at little cost whether any was moved or replaced.

    Args:
        weights: what is pruned.
        optimizer: whose state goes with them.
        others: what else does.
    """

    def __init__(
        self, weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer | None, others: Sequence[Tensor]
    ) -> None:
        self._states = list(optimizer.state.values()) if optimizer is not None else []
        found = [(weight, state_of(weight, optimizer)) for weight in weights]
        self._named = [(optimizer.state[w], len(optimizer.state[w]), own) for w, own in found if own and optimizer]
        tensors = [*weights, *others, *(tensor for _, own in found for tensor in own.values())]
        self._lie = [(tensor, tensor.data_ptr()) for tensor in tensors]

    def still(self, optimizer: torch.optim.Optimizer | None) -> bool:
        """Whether all of them are where they were, and no other came."""
        states = optimizer.state.values() if optimizer is not None else ()
        if len(states) != len(self._states) or any(a is not b for a, b in zip(states, self._states, strict=True)):
            return False
        for state, many, own in self._named:
            if len(state) != many:
                return False
            for name, tensor in own.items():
                if state.get(name) is not tensor:
                    return False
        return all(tensor.data_ptr() == lies for tensor, lies in self._lie)


def state_of(weight: nn.Parameter, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """What an optimizer keeps for each weight of a parameter, by name."""
    state = optimizer.state.get(weight, {}) if optimizer is not None else {}
    return {name: v for name, v in state.items() if isinstance(v, Tensor) and v.shape == weight.shape}
