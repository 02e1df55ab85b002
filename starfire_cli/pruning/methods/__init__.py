"""The family of pruning methods, one a file, and the interface of a member.

A method says in its registration which layers it takes, "conv", "linear" or both, and in whole numbers what must be
gone of each; `units.apply_cuts`, or the kernels, find which weights these are. While a layer's budget stays the same
its mask does too, since nothing that died comes back: that is what makes a mask after every step cost almost nothing.
"""

from __future__ import annotations

from typing import Protocol

from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.units import Budget
from starfire_cli.registry import Family


class Method(Protocol):
    """A pruning method: a budget for each layer."""

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        """The cuts of a layer that are due at `goal`; None where the method leaves it alone.

        The layer's kind, shape and groups decide, not its name. Whatever the progress, the cuts are the same ones in
        the same order, and only their counts differ.
        """
        ...


METHODS: Family[Method] = Family("pruning method", "starfire_cli.pruning.methods")
CONV_METHODS = METHODS.taking("conv")
LINEAR_METHODS = METHODS.taking("linear", "pruning method for linear layers")
