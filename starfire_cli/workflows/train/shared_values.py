"""Trained codebooks (`--values codebook`): the optimizer sees the shared values of each layer in place of its weights.

The gradient of a shared value is the sum over the weights that have it (Han et al., 2015, arXiv 1510.00149, section
3.3). Which value a weight has is decided once, by k-means; dead weights have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from starfire_cli.damage import Damaged
from starfire_cli.pruning.codebook import Codebook, price_of_bits, share
from starfire_cli.text import counted
from starfire_cli.workflows.train.compact_state import in_memory_order


class SharedValues:
    """An optimizer of shared values; the weights of a layer are copies of them.

    Args:
        optimizer: over the weights, without state as yet; changed in place.
        weights: those that share, by key.
        masks: of some of them; they must not change any more.
        codebook: how many values a layer has.
        saved: `state_dict` of a run that goes on; None for k-means.

    Raises Damaged where `saved` does not fit the weights.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        codebook: Codebook,
        saved: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._layers: dict[str, _Layer] = {}
        live = {
            key: masks[key].cpu() if key in masks else torch.ones(weight.shape, dtype=torch.bool)
            for key, weight in weights.items()
        }
        own = {key: (weight.detach().cpu(), live[key]) for key, weight in weights.items() if live[key].any()}
        price = price_of_bits(own, codebook) if saved is None else 0.0
        for key, (exact, alive) in own.items():
            if saved is None:
                values, index = share(exact, alive, codebook, key, price)
            else:
                values, index = _as_saved(exact, alive, saved[key], key)
            self._layers[key] = _Layer.of(weights[key], alive, values, index)
        vectors = {layer.weight: layer.values for layer in self._layers.values()}
        for group in optimizer.param_groups:
            group["params"] = [vectors.get(p, p) for p in group["params"]]
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.scatter()

    @torch.no_grad()
    def gather(self) -> None:
        """Before the step: each shared value gets the sum of its weights' gradients, which are let go."""
        for layer in self._layers.values():
            gradient = layer.weight.grad
            layer.values.grad = None if gradient is None else layer.sums(gradient)
            layer.weight.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """After the step: each live weight becomes a copy of its shared value; dead ones stay as they are, +0.0."""
        for layer in self._layers.values():
            layer.write()

    def describe(self) -> str:
        """The number of shared values, as a line for the user."""
        counts = [len(layer.values) for layer in self._layers.values()]
        return (
            f"the live weights of {counted(len(counts), 'layer')} share {sum(counts):,} values from now on, at most "
            f"{max(counts, default=0)} a layer; these are trained in their place"
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The number of each live weight's value, by layer: uint8, in C order."""
        return {key: layer.numbers() for key, layer in self._layers.items()}


@dataclass(frozen=True)
class _Layer:
    """A weight, its A shared values, where its live entries lie in memory (None: all are alive), int64, (live,), and
    the number of each one's value, int32, (live,).
    """

    weight: nn.Parameter
    values: nn.Parameter
    places: Tensor | None
    index: Tensor

    @classmethod
    def of(cls, weight: nn.Parameter, live: Tensor, values: Tensor, index: Tensor) -> _Layer:
        numbers = in_memory_order(index.int().to(weight.device), weight)
        vector = nn.Parameter(values.to(weight.device))
        if live.all():
            return cls(weight, vector, None, numbers.clone())
        places = in_memory_order(live.to(weight.device), weight).nonzero().squeeze(1)
        return cls(weight, vector, places, numbers[places])

    def sums(self, gradient: Tensor) -> Tensor:
        """The gradients of the values, (A,). A million numbers are added in float64 where there is one."""
        exact = torch.float32 if gradient.device.type == "mps" else torch.float64
        entries = in_memory_order(gradient, self.weight)
        live = entries if self.places is None else entries.index_select(0, self.places)
        found = torch.zeros(len(self.values), dtype=exact, device=gradient.device)
        return found.index_add_(0, self.index, live.to(exact)).to(gradient.dtype)

    def write(self) -> None:
        """Writes its value to each live entry of the weight."""
        entries = in_memory_order(self.weight, self.weight)
        assert entries.data_ptr() == self.weight.data_ptr(), "a weight with gaps in memory"
        if self.places is None:
            torch.index_select(self.values.detach(), 0, self.index, out=entries)
        else:
            entries.index_copy_(0, self.places, self.values.detach().index_select(0, self.index))

    def numbers(self) -> Tensor:
        """The number of each live entry's value, uint8, in C order."""
        whole = torch.full_like(self.weight, -1, dtype=torch.int32)
        entries = in_memory_order(whole, self.weight)
        if self.places is None:
            entries.copy_(self.index)
        else:
            entries.index_copy_(0, self.places, self.index)
        return whole[whole >= 0].to(torch.uint8)


def _as_saved(weight: Tensor, live: Tensor, numbers: Tensor, key: str) -> tuple[Tensor, Tensor]:
    """(values, number of each weight's) of a weight that had them when it was saved. Raises Damaged."""
    if numbers.dtype is not torch.uint8 or numbers.shape != (int(live.sum()),):
        raise Damaged(f"the numbers of the shared values of {key} are not those of its live weights")
    index = torch.zeros(weight.shape, dtype=torch.uint8)
    index[live] = numbers
    values = weight.new_zeros(int(numbers.max()) + 1)
    values[numbers.long()] = weight[live]
    if not torch.equal(values[numbers.long()], weight[live]):
        raise Damaged(f"weights of {key} that share a value differ")
    return values, index
