"""The family of pruning methods, one a file, and the interfaces of a member.

A method says in its registration what it is for. "conv" and "linear": layers of that kind, one by one; it gives in
whole numbers what must be gone of each, and `units.apply_cuts`, or the kernels, find which weights these are. While a
layer's budget stays the same its mask does too, since nothing that died comes back: that is what makes a mask after
every step cost almost nothing. "network": convolutions and linear layers together, as a point on the axes of `axes.py`;
"oneshot" beside it: a trained network can be pruned with it at once.
"channels": compression methods, which remove channels from a network that is trained already, and may look at images.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from starfire_cli.pruning.axes import Axes
from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.channels.selection.edited import EditedNetwork
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


@runtime_checkable
class NetworkMethod(Protocol):
    """A pruning method that sees all layers at once."""

    def axes(self) -> Axes:
        """The method as a point on the axes. Raises BadOption where its options do not go together."""
        ...


class ChannelMethod(Protocol):
    """A compression method: chooses the channels of a trained network that go, and mends what is left."""

    @property
    def takes_target(self) -> bool:
        """Whether it is told the share of channels to remove; else the network tells how many go."""
        ...

    @property
    def looks_at_images(self) -> bool:
        """Whether the network has to have images."""
        ...

    def prune(self, network: EditedNetwork, target: float) -> None:
        """Remove channels, in place.

        Args:
            network: with images, if it looks at these.
            target: the share of the channels of the layers concerned, in [0, 1); 0 if it takes none.

        Raises BadOption where that leaves a layer without channels, or there are too few images.
        """
        ...


METHODS: Family[Any] = Family("pruning method", "starfire_cli.pruning.methods")
CONV_METHODS: Family[Method] = METHODS.taking("conv")
LINEAR_METHODS: Family[Method] = METHODS.taking("linear", noun="pruning method for linear layers")
TRAINING_METHODS: Family[Method | NetworkMethod] = METHODS.taking("conv", "network")
ONESHOT_METHODS: Family[Method | NetworkMethod] = METHODS.taking("conv", "oneshot")
CHANNEL_METHODS: Family[ChannelMethod] = METHODS.taking("channels")
