"""The pruned weights of one model with all that has to be zero where they are dead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.pruning._counts import Counts
from starfire_cli.pruning._tensor_addresses import TensorAddresses, state_of
from starfire_cli.pruning.joint_optimizers import AnyOptimizer
from starfire_cli.pruning.kernels import Kernels, MaskJob
from starfire_cli.pruning.kernels.torch import write_dead
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.masks import Masks
from starfire_cli.pruning.ties import parameters_of
from starfire_cli.pruning.units import Budget


class MaskedWeights:
    """Weights, their masks, the optimizer's state and the moving average of them.

    Args:
        layers: whose weights these are.
        weights: the parameters by key; changed in place.
        kernels: that mask gradients.

    Attributes:
        masks: bool, of each weight's shape and strides, so that no elementwise pass has to jump about in memory.
        counts: the dead weights of each layer.
        list_candidates: what lists candidates for a selection, on a CPU.
        touched: layers that may have lost something, in the order of their first time.
    """

    def __init__(self, layers: Sequence[Layer], weights: Mapping[str, nn.Parameter], kernels: Kernels) -> None:
        self.layers, self.weights = list(layers), dict(weights)
        self.masks: Masks = {k: torch.ones_like(w, dtype=torch.bool) for k, w in self.weights.items()}
        self.counts = Counts(self.weights)
        self.touched: dict[str, None] = {}
        self.optimizer: AnyOptimizer | None = None
        self._shadow: dict[str, Tensor] = {}
        self._kernels = kernels
        self.list_candidates = kernels.list_candidates

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next((w.device for w in self.weights.values()), torch.device("cpu"))

    def attach(self, optimizer: AnyOptimizer, ema: nn.Module | None) -> None:
        """From now on, clear this optimizer's state and this moving average where weights are dead."""
        self.optimizer = optimizer
        shadow = parameters_of(ema) if ema is not None else {}
        assert ema is None or shadow.keys() >= self.masks.keys(), "the moving average's keys are not the model's"
        self._shadow = {key: shadow[key] for key in self.masks if key in shadow}
        self.enforce(self.touched)

    def load(self, masks: Mapping[str, Tensor]) -> None:
        """Take over masks; a layer without one is alive. Weights, state and averages under them are zeroed."""
        for layer in self.layers:
            if layer.key not in masks:
                continue
            mask = masks[layer.key]
            if tuple(mask.shape) != layer.shape:
                raise StarfireError(f"the mask of {layer.key} has shape {tuple(mask.shape)}, its weight {layer.shape}")
            self.masks[layer.key].copy_(mask)
            self.counts.set(layer.key, layer.weights - int(mask.sum()))
        dead = [key for key, count in self.counts.known.items() if count]
        self.touched.update(dict.fromkeys(dead))
        self.enforce(dead)

    def follow_layout(self) -> bool:
        """Give masks the strides that their weights have now. Returns whether any had others."""
        moved = [key for key, weight in self.weights.items() if weight.stride() != self.masks[key].stride()]
        for key in moved:
            self.masks[key] = torch.empty_like(self.weights[key], dtype=torch.bool).copy_(self.masks[key])
        return bool(moved)

    def mask_gradients(self, keys: Iterable[str]) -> None:
        """Write zeros where these layers are dead into the gradients that they have."""
        pairs = [(g, self.masks[key]) for key in keys if (g := self.weights[key].grad) is not None]
        if pairs:
            self._kernels.mask_gradients([g for g, _ in pairs], [mask for _, mask in pairs])

    @torch.no_grad()
    def enforce(self, keys: Iterable[str]) -> None:
        """Write zeros where these layers are dead: weights, gradients, moving average, optimizer state."""
        for key in keys:
            write_dead(self.masks[key], self.tensors(key))

    def tensors(self, key: str) -> tuple[Tensor, ...]:
        """Every tensor that is zero where the layer is dead."""
        weight = self.weights[key]
        return (weight, *self.kept(key), *(() if weight.grad is None else (weight.grad,)))

    def kept(self, key: str) -> list[Tensor]:
        """Tensors kept from step to step that are zero where the weight is dead: optimizer state, moving average."""
        shadow = self._shadow.get(key)
        return [*self.state(key).values(), *(() if shadow is None else (shadow,))]

    @property
    def averages(self) -> tuple[Tensor, ...]:
        """The moving averages of these weights."""
        return tuple(self._shadow.values())

    def state(self, key: str) -> dict[str, Tensor]:
        """The optimizer's state of a weight as far as it has the weight's shape, by name."""
        return state_of(self.weights[key], self.optimizer)

    def job(self, layer: Layer, budget: Budget) -> MaskJob:
        """The kernels' job of pruning a layer, which counts as touched from now on."""
        self.touched[layer.key] = None
        weight, mask = self.weights[layer.key].detach(), self.masks[layer.key]
        return MaskJob(layer=layer, weight=weight, alive=mask, budget=budget, others=tuple(self.kept(layer.key)))

    def addresses(self, keys: Iterable[str]) -> TensorAddresses:
        """The addresses of the tensors that go with some layers."""
        return TensorAddresses([self.weights[k] for k in keys], self.optimizer, list(self._shadow.values()))
