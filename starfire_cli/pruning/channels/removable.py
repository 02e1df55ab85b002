"""Finds the channels that can be removed from a network, and the biases that take over the constants they carried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from starfire_cli.pruning.channels.constants import Constants, keeps_constants, live_mask
from starfire_cli.pruning.channels.coupling import Channels, ConsumerLayer
from starfire_cli.pruning.channels.graph import Traced
from starfire_cli.pruning.channels.recipe import ShrinkRecipe

# Layer -> whose tensor takes over its constants ("bias", "new bias", or the name of the BatchNorm behind it), and what
# it gains for each output, (O,), float64.
Gains = dict[str, tuple[str, Tensor]]


class Removable:
    """The channel numbers that can be removed, and the reasons why the others cannot.

    Args:
        traced: the network.
        masks: what is dead, under all names of its parameters.
        found: its constants.
        channels: its channel numbers.
        keep: channel number -> why it must stay, beside those that the network pins.
    """

    def __init__(
        self,
        traced: Traced,
        masks: Mapping[str, Tensor],
        found: Constants,
        channels: Channels,
        keep: Mapping[int, str] | None = None,
    ) -> None:
        self.traced, self.found, self.channels = traced, found, channels
        self.live: dict[str, Tensor] = {}  # (K, C) or (O, I): does any weight of the kernel live
        for name in channels.owners:
            module = traced.root.get_submodule(name)
            if isinstance(module, nn.Conv2d | nn.Linear):
                live = live_mask(masks, name, module.weight)
                self.live[name] = live.flatten(2).any(2) if live.ndim == 4 else live
        self.why: dict[int, str] = {}
        self.gone = torch.zeros(channels.count, dtype=torch.bool)
        self._choose({**(keep or {}), **channels.pinned})

    def _choose(self, keep: dict[int, str]) -> None:
        """Keep one channel of a dimension whose channels would all go, which may make others stay."""
        while True:
            self.gone, self.why = self._fixpoint(keep)
            emptied = [n for n in self.channels.owners.values() if bool(self.gone[n].all())]
            if not emptied:
                return
            for numbers in emptied:
                keep.setdefault(int(numbers[0]), "is the one channel that its layer must keep")

    def _fixpoint(self, keep: Mapping[int, str]) -> tuple[Tensor, dict[int, str]]:
        """The largest set of channels of which none is needed by one that stays, and why each other one stays."""
        gone = torch.zeros_like(self.gone)
        for numbers in self.channels.owners.values():
            gone[numbers] = True
        gone[torch.tensor(list(keep), dtype=torch.long)] = False
        before = None
        while before is None or not bool((before == gone).all()):
            before, why = gone.clone(), dict(keep)
            # From the network's end on, so that a chain of layers is settled in one pass.
            for consumer in reversed(self.channels.consumers):
                stuck_I, padded_I = self._stuck(consumer, gone)
                gone[consumer.reads_I[stuck_I]] = False
                for number, padded in zip(consumer.reads_I[stuck_I].tolist(), padded_I[stuck_I].tolist(), strict=True):
                    said = "{} reads a constant there and pads with zeros" if padded else "{} reads the image there"
                    why.setdefault(number, said.format(consumer.name))
        return gone, why

    def _stuck(self, consumer: ConsumerLayer, gone: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs, (I,), that a layer needs, and those whose constant cannot be folded since the layer pads."""
        read_I = self.live[consumer.name][~gone[consumer.gives_O]].any(0)
        carried_I = self.found.reads[consumer.node]
        module = self.traced.root.get_submodule(consumer.name)
        padded_I = torch.zeros_like(read_I)
        if isinstance(module, nn.Conv2d) and not keeps_constants(module):
            padded_I = carried_I.isfinite() & carried_I.ne(0)
        return read_I & (padded_I | ~carried_I.isfinite()), padded_I

    def gains(self) -> Gains:
        """The constants that layers read from channels that go."""
        gains: Gains = {}
        for consumer in self.channels.consumers:
            gone_I = self.gone[consumer.reads_I]
            weight = self.traced.module(consumer.node).weight
            assert isinstance(weight, Tensor)
            sums_OI = weight[:, gone_I].flatten(2).sum(2) if weight.ndim == 4 else weight[:, gone_I]
            gain_O = sums_OI @ self.found.reads[consumer.node][gone_I].nan_to_num(nan=0.0)
            if bool(gain_O[~self.gone[consumer.gives_O]].any()):
                gains[consumer.name] = constant_taker(self.traced, consumer.node), gain_O
        return gains

    def recipe(self, gains: Gains) -> ShrinkRecipe:
        """The recipe of the removal: the indices that stay of each layer that changes."""
        recipe: ShrinkRecipe = {}
        for name, numbers in self.channels.owners.items():
            if bool(self.gone[numbers].any()):
                kept = (~self.gone[numbers]).nonzero().flatten().tolist()
                cut = recipe.setdefault(name, {})
                cut["out"] = kept
                module = self.traced.root.get_submodule(name)
                if isinstance(module, nn.Conv2d) and module.groups > 1:
                    each = module.out_channels // module.in_channels
                    cut["in"] = [k // each for k in kept[::each]]
        for consumer in self.channels.consumers:
            if bool(self.gone[consumer.reads_I].any()):
                kept = (~self.gone[consumer.reads_I]).nonzero().flatten().tolist()
                recipe.setdefault(consumer.name, {})["in"] = kept
        for name, (taker, _) in gains.items():
            if taker == "new bias":
                recipe[name]["bias"] = True
        return recipe

    def stayed(self, name: str) -> dict[str, int]:
        """Reason -> number of a layer's outputs that have no live weight and stay."""
        live = self.live.get(name)
        if live is None:
            return {}
        numbers = self.channels.owners[name][~live.any(1)]
        return dict(Counter(self.why.get(n, "nothing") for n in numbers[~self.gone[numbers]].tolist()))


def constant_taker(traced: Traced, node: fx.Node) -> str:
    """The tensor that takes over a constant at a layer's outputs: "bias", the BatchNorm behind it, or "new bias"."""
    if traced.module(node).bias is not None:
        return "bias"
    users = list(node.users)
    if len(users) == 1 and traced.role(users[0]) == "batchnorm" and traced.once(str(users[0].target)):
        return str(users[0].target)
    return "new bias"
