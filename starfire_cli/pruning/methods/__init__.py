"""The family of pruning methods, one a file, and what a member must be able to do.

A method says in its registration which layers it takes, "conv", "linear" or both. It splits the question in two:
`budget` says in whole numbers what must be gone (arithmetic, no tensors), `mask` says which. While a layer's budget
stays the same its mask does too, since nothing that died comes back: that is what makes a mask after every step cost
almost nothing.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from starfire_cli.pruning.budget import ConvBudget, Goal, LinearBudget
from starfire_cli.pruning.layers import Layer
from starfire_cli.registry import Family


class ConvMethod(Protocol):
    """How a convolution is pruned."""

    def budget(self, layer: Layer, goal: Goal) -> ConvBudget | None:
        """What must be gone at `goal`; None where the method leaves this layer alone."""
        ...

    def mask(self, layer: Layer, weight_KCRS: Tensor, alive_KCRS: Tensor, budget: ConvBudget) -> Tensor:
        """What is left of `alive_KCRS`, bool, (K, C, R, S)."""
        ...


class LinearMethod(Protocol):
    """How a linear layer is pruned."""

    def budget(self, layer: Layer, goal: Goal) -> LinearBudget | None:
        """What must be gone at `goal`; None where the method leaves this layer alone."""
        ...

    def mask(self, layer: Layer, weight_OI: Tensor, alive_OI: Tensor, budget: LinearBudget) -> Tensor:
        """What is left of `alive_OI`, bool, (O, I)."""
        ...


@runtime_checkable
class ByRules(Protocol):
    """What a method has beside these if its masks follow the common rules, so that any kernels can compute them."""

    def seen(self, layer: Layer) -> Layer:
        """The layer as the rules are to see it."""
        ...


METHODS: Family[Any] = Family("pruning method", "starfire_cli.pruning.methods")
CONV_METHODS: Family[ConvMethod] = METHODS.taking("conv")
LINEAR_METHODS: Family[LinearMethod] = METHODS.taking("linear", "pruning method for linear layers")
