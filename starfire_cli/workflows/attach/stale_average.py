"""Notices a moving average that nobody updates."""

from __future__ import annotations

import torch
from torch import nn

from starfire_cli.pruning import Masks


class StaleAverage:
    """A copy of one small parameter of a moving average, to see later whether it was ever updated.

    Args:
        network: the network in training.
        average: that of its averaged weights, with parameters of the same names; None: there is none.
    """

    def __init__(self, network: nn.Module, average: nn.Module | None) -> None:
        self._network, self._average = network, average
        shadow = {} if average is None else dict(average.named_parameters())
        both = [key for key, p in network.named_parameters() if p.requires_grad and key in shadow]
        self._key = min(both, key=lambda key: (shadow[key].numel() < 2, shadow[key].numel()), default=None)
        self._before = None if self._key is None else shadow[self._key].detach().clone()

    def is_stale(self, masks: Masks) -> bool:
        """Whether the average is what it was, but for dead weights, while the network has moved on."""
        if self._key is None or self._before is None or self._average is None:
            return False
        dead = ~masks[self._key] if self._key in masks else torch.zeros_like(self._before, dtype=torch.bool)
        before = self._before.masked_fill(dead, 0)
        average, weight = (net.get_parameter(self._key).detach() for net in (self._average, self._network))
        return torch.equal(average, before) and not torch.equal(weight.to(before), before)
