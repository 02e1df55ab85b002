"""Tensors that go with the weights (optimizer state and others), and a cheap check that none was moved or replaced."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

from torch import Tensor, nn

from starfire_cli.pruning.joint_optimizers import AnyOptimizer


class TensorAddresses:
    """The addresses of all tensors that go with some weights, to notice cheaply when one was moved or replaced.

    Args:
        weights: what is pruned.
        optimizer: whose state goes with them.
        others: what else does.
    """

    def __init__(
        self, weights: Sequence[nn.Parameter], optimizer: AnyOptimizer | None, others: Sequence[Tensor]
    ) -> None:
        self._states = list(optimizer.state.values()) if optimizer is not None else []
        mine = [optimizer.state[w] for w in weights if w in optimizer.state] if optimizer is not None else []
        self._mine, self._lengths = mine, list(map(len, mine))
        found = [(weight, name) for weight in weights for name in state_of(weight, optimizer)]
        self._holders = [optimizer.state[weight] for weight, _ in found] if optimizer is not None else []
        self._names = [name for _, name in found]
        self._named = [state[name] for state, name in zip(self._holders, self._names, strict=True)]
        self._tensors = [*weights, *others, *self._named]
        self._lie = list(map(Tensor.data_ptr, self._tensors))

    def unchanged(self, optimizer: AnyOptimizer | None) -> bool:
        """Whether all of them are where they were, and no other came."""
        states = list(optimizer.state.values()) if optimizer is not None else []
        return (
            len(states) == len(self._states)
            and all(map(is_, states, self._states))
            and list(map(len, self._mine)) == self._lengths
            and all(map(is_, map(dict.get, self._holders, self._names), self._named))
            and list(map(Tensor.data_ptr, self._tensors)) == self._lie
        )


def state_of(weight: nn.Parameter, optimizer: AnyOptimizer | None) -> dict[str, Tensor]:
    """The optimizer's state of a parameter as far as it has the parameter's shape, by name."""
    state = optimizer.state.get(weight, {}) if optimizer is not None else {}
    return {name: v for name, v in state.items() if isinstance(v, Tensor) and v.shape == weight.shape}
