"""Compact optimizer state (`--compact-state`): once the masks are fixed, for live weights only.

Each pruned weight is replaced in the optimizer by the vector of its live entries. The vectors exist during the step
alone; between steps only the optimizer's state of that length is kept, and that is what a checkpoint holds. Entries are
in the order in which the weight lies in memory, which `channels_last` changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class CompactState:
    """An optimizer that sees live entries of pruned weights.

    Args:
        optimizer: elementwise, over the weights; changed in place, what it remembers of dead entries is dropped.
        weights: by key.
        masks: of some of them; they must not change any more.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]
    ) -> None:
        self._live = {
            weights[key]: _Live(mask, int(mask.sum()), nn.Parameter(weights[key].detach().new_empty(0)))
            for key, mask in masks.items()
            if not mask.all()
        }
        for group in optimizer.param_groups:
            group["params"] = [self._live[p].vector if p in self._live else p for p in group["params"]]
        for weight, live in self._live.items():
            if weight in optimizer.state:
                state = optimizer.state.pop(weight)
                places = live.places(weight)
                optimizer.state[live.vector] = {
                    name: in_memory_order(value, weight).index_select(0, places)
                    if isinstance(value, Tensor) and value.shape == weight.shape
                    else value
                    for name, value in state.items()
                }
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def gather(self) -> None:
        """Before the step: live weights and gradients into the vectors. The weights' own gradients are let go."""
        for weight, live in self._live.items():
            places, vector = live.places(weight), live.vector
            vector.data = in_memory_order(weight, weight).index_select(0, places)
            vector.grad = None if weight.grad is None else in_memory_order(weight.grad, weight).index_select(0, places)
            weight.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """After the step: the vectors back into the weights, and their memory let go."""
        for weight, live in self._live.items():
            entries = in_memory_order(weight, weight)
            assert entries.data_ptr() == weight.data_ptr(), "a weight with gaps in memory"
            entries.index_copy_(0, live.places(weight), live.vector)
            live.vector.grad = None
            live.vector.data = live.vector.new_empty(0)


@dataclass(frozen=True)
class _Live:
    """The live part of a weight: its mask, the number of live entries, and what the optimizer holds for them."""

    mask: Tensor
    count: int
    vector: nn.Parameter

    def places(self, weight: Tensor) -> Tensor:
        """The places of the live entries in memory, int64, (count,).

        Found anew each time: kept, they would be as large as the state that is saved. No device is waited for.
        """
        mask = in_memory_order(self.mask, weight)
        found = mask.nonzero() if mask.device.type == "cpu" else torch.nonzero_static(mask, size=self.count)
        return found.squeeze(1)


def in_memory_order(tensor: Tensor, weight: Tensor) -> Tensor:
    """All entries in the order in which the weight's lie in memory; a view, where the tensor lies like it."""
    if tensor.stride() != weight.stride():
        tensor = torch.empty_like(weight, dtype=tensor.dtype).copy_(tensor)
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.detach().permute(order).reshape(-1)
