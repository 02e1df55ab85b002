"""Neuron growth (NeST; Dai et al., 2019, arXiv 1711.02017): dormant neurons between two linear layers wake.

A neuron is dormant while all its weights are dead, in the layer before it and in the one behind. Which weights it wakes
with is told by the bridging gradient, that of a connection past the neuron's layer, straight from the inputs of the
first layer to the outputs of the second: G = dL/du x, (M, N).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from starfire_cli.pruning.channels.sequences import linear_pairs
from starfire_cli.pruning.layer_units import LayerUnits
from starfire_cli.pruning.masked_weights import MaskedWeights
from starfire_cli.pruning.moment import Moment

_BATCHES = 10  # before an evaluation, over which bridging gradients are added up


@dataclass(frozen=True, kw_only=True)
class Newborn:
    """Weights of neurons that wake: of the layers' shapes, zero elsewhere."""

    first: Tensor
    second: Tensor


class NeuronGrowth:
    """Adds up bridging gradients in training, and says what weights dormant neurons wake with.

    Bound to a model as a penalty is, but it adds nothing to the loss.

    Args:
        share: of the neurons between two linear layers that are dormant at first.
        ratio: the pairs of an input and an output with the largest |G| that new neurons connect, as a share of all.
        strength: the mean |w| of what a neuron wakes with, as a share of that of the layer's live weights.

    Attributes:
        pairs: the keys of linear layers in a row, (the earlier, the later).
    """

    def __init__(self, *, share: float, ratio: float, strength: float) -> None:
        self.share, self._ratio, self._strength = share, ratio, strength
        self.pairs: list[tuple[str, str]] = []
        self._sums: dict[str, Tensor] = {}
        self._step: dict[str, Tensor] = {}
        self._listens = True
        self._seen = 0
        self._handles: list[RemovableHandle] = []
        self._average: Callable[[list[Tensor]], list[Tensor]] = list

    def bind(self, model: nn.Module, tensors: MaskedWeights) -> NeuronGrowth:
        """Find the linear layers in a row, and listen to what goes in and comes back."""
        for first, second in linear_pairs(model) if self.share else ():
            keys = f"{first}.weight", f"{second}.weight"
            if all(key in tensors.weights for key in keys):
                self.pairs.append(keys)
                self._listen(keys[0], model.get_submodule(first), model.get_submodule(second))
        return self

    def use_average(self, average: Callable[[list[Tensor]], list[Tensor]]) -> None:
        """From now on, take the mean over all ranks with this."""
        self._average = average

    def dormant(self, layers: Mapping[str, LayerUnits], pair: tuple[str, str]) -> Tensor:
        """The neurons between two layers that have no live weight: bool, (H,)."""
        first, second = (layers[key].alive for key in pair)
        return ~(first.any(1) | second.any(0))

    def untouchable(self, layers: Mapping[str, LayerUnits]) -> dict[str, Tensor]:
        """By layer the weights of dormant neurons, (U,) bool, which connection growth leaves alone."""
        found: dict[str, Tensor] = {}
        for pair in self.pairs:
            rests_H = self.dormant(layers, pair)
            for key, rests in zip(pair, (rests_H[:, None], rests_H[None]), strict=True):
                mask = rests.expand(layers[key].alive.shape).reshape(-1)
                found[key] = found[key] | mask if key in found else mask
        return found

    def wake(self, layers: Mapping[str, LayerUnits], passed: float, moment: Moment) -> dict[tuple[str, str], Newborn]:
        """By pair the weights of the neurons that are to wake when a share `passed` of the growth phase is over.

        All ranks come here. The bridging gradients begin at zero again.
        """
        counts = {}
        for pair in self.pairs:
            rests_H = self.dormant(layers, pair)
            counts[pair] = int(rests_H.sum()) - int(int(self.share * len(rests_H)) * (1 - passed) + 1e-9)
        due = [pair for pair in self.pairs if counts[pair] > 0]
        sums = self._average([self._sum_of(layers, pair) for pair in due])
        self._sums = {}
        return {
            pair: self._born(layers, pair, counts[pair], sum_MN, moment) for pair, sum_MN in zip(due, sums, strict=True)
        }

    def add_gradients(self, moment: Moment) -> None:
        """Take over what the hooks found in the step's batch, unless it overflowed."""
        for key, bridging in self._step.items():
            if bool(bridging.sum().isfinite()):
                self._sums[key] = self._sums[key] + bridging if key in self._sums else bridging
        self._step = {}
        self._seen = moment.step
        self._listens = self._due(moment)
        if moment.step >= moment.era.last_step:
            for handle in self._handles:
                handle.remove()

    def after_step(self, moment: Moment) -> None:
        """There is nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """The bridging gradients so far, and whether the next batch counts."""
        return {"sums": dict(self._sums), "listens": self._listens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._sums, self._listens = dict(state["sums"]), bool(state["listens"])

    def _due(self, moment: Moment) -> bool:
        """Whether the next step is one of the last before an evaluation."""
        era, step = moment.era, moment.step + 1
        return step <= era.last_step and -(step - era.first_step) % era.mask_every < _BATCHES

    def _listen(self, key: str, first: nn.Module, second: nn.Module) -> None:
        # Functions, not methods: copies of the model share what they refer to.
        inputs: list[Tensor] = []

        def hears(module: nn.Module) -> bool:
            return self._listens and module.training and torch.is_grad_enabled()

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if hears(module):
                inputs[:] = [args[0].detach()]

        def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if hears(module) and inputs and output.requires_grad:
                x_BN = inputs.pop()

                def add(gradient_BM: Tensor) -> None:
                    g, x = gradient_BM.detach().float().flatten(0, -2), x_BN.float().flatten(0, -2)
                    bridging_MN = g.T @ x
                    self._step[key] = self._step[key] + bridging_MN if key in self._step else bridging_MN

                output.register_hook(add)  # type: ignore[no-untyped-call]

        self._handles += [first.register_forward_pre_hook(before), second.register_forward_hook(after)]

    def _sum_of(self, layers: Mapping[str, LayerUnits], pair: tuple[str, str]) -> Tensor:
        """The bridging gradient so far, (M, N); zero where every batch overflowed."""
        first, second = (layers[key].weight for key in pair)
        return self._sums.get(pair[0], first.new_zeros(second.shape[0], first.shape[1], dtype=torch.float32))

    def _born(
        self, layers: Mapping[str, LayerUnits], pair: tuple[str, str], count: int, bridging_MN: Tensor, moment: Moment
    ) -> Newborn:
        first, second = (layers[key] for key in pair)
        draws = moment.generator(pair[0], "neurons")
        into_kN, out_Mk = newborn(bridging_MN.double().cpu().numpy(), count, self._ratio, draws)
        places = self.dormant(layers, pair).nonzero().flatten()[:count]
        made = []
        for units, values, row in ((first, into_kN, True), (second, out_Mk, False)):
            weights = torch.zeros_like(units.weight)
            scaled = _scaled(values, self._strength * _mean_size(units))
            new = torch.from_numpy(scaled).to(weights)
            if row:
                weights[places] = new
            else:
                weights[:, places] = new
            made.append(weights)
        return Newborn(first=made[0], second=made[1])


def newborn(
    bridging_MN: NDArray[np.float64], count: int, ratio: float, draws: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weights into and out of new neurons, (count, N) and (M, count), before they are scaled (Algorithm 1).

    The pairs of the largest |G| are dealt out to the neurons in turn. To each pair's weights are added
    sqrt(|G|) times a random number in (0, 1), one of them with a random sign and the other with that which makes their
    product step against G.
    """
    M, N = bridging_MN.shape
    size = np.abs(bridging_MN).reshape(-1)
    top = np.argsort(-size, kind="stable")[: max(count, math.ceil(ratio * size.size))]
    top = top[size[top] > 0]
    m, n = np.divmod(top, N)
    who = np.arange(len(top)) % count
    sign = draws.integers(0, 2, size=len(top)) * 2.0 - 1
    into_kN, out_Mk = np.zeros((count, N)), np.zeros((M, count))
    np.add.at(into_kN, (who, n), -np.sign(bridging_MN[m, n]) * sign * np.sqrt(size[top]) * draws.random(len(top)))
    np.add.at(out_Mk, (m, who), sign * np.sqrt(size[top]) * draws.random(len(top)))
    return into_kN, out_Mk


def _mean_size(units: LayerUnits) -> float:
    """The mean |w| of the live weights."""
    return float(units.weight.abs().sum(dtype=torch.float64)) / max(1, units.live)


def _scaled(values: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """Multiplied so that the mean size of what is not zero is `mean`."""
    size: NDArray[np.float64] = np.abs(values)
    scaled: NDArray[np.float64] = values * (mean * np.count_nonzero(size) / max(size.sum(), 1e-300))
    return scaled
