"""What does an optimizer remember once the masks are fixed? With `--compact-state`, live weights only.

Each pruned weight is replaced in the optimizer by the vector of its live entries. The vectors exist during the step
alone; between steps only the optimizer's state of that length is kept, and that is what a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Mapping

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
            weights[key]: (mask, int(mask.sum()), nn.Parameter(weights[key].detach().new_empty(0)))
            for key, mask in masks.items()
            if not mask.all()
        }
        for group in optimizer.param_groups:
            group["params"] = [self._live[p][2] if p in self._live else p for p in group["params"]]
        for weight, (mask, count, live) in self._live.items():
            if weight in optimizer.state:
                state = optimizer.state.pop(weight)
                optimizer.state[live] = {
                    name: _taken(value, mask, count)
                    if isinstance(value, Tensor) and value.shape == weight.shape
                    else value
                    for name, value in state.items()
                }
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def gather(self) -> None:
        """Before the step: live weights and gradients into the vectors. The weights' own gradients are let go."""
        for weight, (mask, count, live) in self._live.items():
            live.data = _taken(weight, mask, count)
            live.grad = None if weight.grad is None else _taken(weight.grad, mask, count)
            weight.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """After the step: the vectors back into the weights, and their memory let go."""
        for weight, (mask, _, live) in self._live.items():
            weight.masked_scatter_(mask, live)
            live.grad = None
            live.data = live.new_empty(0)


def _taken(tensor: Tensor, mask: Tensor, count: int) -> Tensor:
    """The live entries, (count,), in C order; no device is waited for."""
    if tensor.device.type == "cpu":
        return tensor.detach().masked_select(mask)
    places = torch.nonzero_static(mask.reshape(-1), size=count).squeeze(1)
    return tensor.detach().reshape(-1).index_select(0, places)
