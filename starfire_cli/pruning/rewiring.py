"""Masks of methods that see the whole network: evaluates their stages, and writes what goes and what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.pruning.axes import Axes, Change, SetByLoss, Stage
from starfire_cli.pruning.channels.sequences import batchnorms_after
from starfire_cli.pruning.gradient_averages import GradientAverages, all_finite, gradients_of
from starfire_cli.pruning.kernels.torch import count_alive, write_dead
from starfire_cli.pruning.layer_units import LayerUnits, by_layer
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.masked_weights import MaskedWeights
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.neuron_growth import NeuronGrowth
from starfire_cli.pruning.rewiring_plan import planned_masks
from starfire_cli.pruning.schedule import Era
from starfire_cli.pruning.selection import count_flags, places_of

_EVERY = 100  # steps, as most of these methods have it
_AT_LEAST = 20  # evaluations in a short era
_LEAST_OF_STEPS = 10  # between evaluations that take the place of a step
_FEW = 0.1  # the share of weights up to which zeros are written one by one


class Rewiring:
    """Evaluates the masks of one method.

    Args:
        model: whose weights these are.
        tensors: all weights that have masks.
        keys: which of them the method prunes.
        axes: the method's.
        target: the final sparsity.
        era: when masks change.
        seed: of random draws.

    Raises BadOption where the era has no room for an evaluation.
    """

    uses_kernels = False

    def __init__(
        self,
        model: nn.Module,
        tensors: MaskedWeights,
        keys: Collection[str],
        *,
        axes: Axes,
        target: float,
        era: Era,
        seed: int,
    ) -> None:
        length = era.last_step - era.first_step
        self._refuse_impossible(tensors, keys, axes, target)
        every = axes.every if axes.every is not None else _usual_interval(length, replaces_step=axes.replaces_step)
        if axes.stages and length and every > length:
            raise BadOption(
                f"masks every {every} steps leave no evaluation in an era of {length} steps; at most every={length}"
            )
        if axes.periods is not None and length and axes.periods > length:
            raise BadOption(f"an era of {length} steps has no room for {axes.periods} phases; at most {length}")
        self.era = replace(era, ramp=axes.ramp, mask_every=every, doublings=axes.doublings)
        self.axes, self.monotone = axes, axes.monotone
        self._tensors, self._target, self._seed = tensors, target, seed
        self._pruned = [layer for layer in tensors.layers if layer.key in keys]
        self._memory: dict[str, Any] = {}
        self._gradients: dict[str, Tensor] = {}
        self._reads = frozenset[str]().union(*(stage.reads for stage in axes.stages))
        self._signs: dict[str, Tensor] = {}
        self._averages = GradientAverages(tensors.weights) if "momentum" in self._reads else None
        self._changed = False
        after = batchnorms_after(model) if "batchnorm" in self._reads else {}
        self._norms = {layer.key: model.get_submodule(after[layer.key]) for layer in self._pruned if layer.key in after}
        self._factors: dict[str, Tensor] = {}
        self._average: Callable[[list[Tensor]], list[Tensor]] = list
        self._penalty = axes.penalty.bind(model, tensors) if axes.penalty is not None else None

    def use_average(self, average: Callable[[list[Tensor]], list[Tensor]]) -> None:
        """From now on, take means over all ranks with this, of what each of them has for itself."""
        self._average = average
        if isinstance(self._penalty, NeuronGrowth):
            self._penalty.use_average(average)

    @staticmethod
    def _refuse_impossible(tensors: MaskedWeights, keys: Collection[str], axes: Axes, target: float) -> None:
        """Raises BadOption where the target is more than all units but one of each layer."""
        layers = [layer for layer in tensors.layers if layer.key in keys]
        each = [LayerUnits(x, axes.unit, tensors.weights[x.key].detach(), tensors.masks[x.key]) for x in layers]
        most = sum((units.count - 1) * units.size for units in each) / max(1, sum(layer.weights for layer in layers))
        if axes.targeted and layers and target > most:
            raise BadOption(
                f"--target {target:g} is more than this method's units can give: with one of each layer left it is "
                f"{math.floor(most * 1000) / 1000:g}"
            )
        if axes.rise is not None and axes.rise.initial > target:
            raise BadOption(f"initial={axes.rise.initial:g} is above --target {target:g}, which it rises to")

    def evaluates_at(self, step: int) -> bool:
        """Whether masks may change at this step."""
        if not self.axes.stages or self.axes.rounds is not None:
            return False
        if step == self.era.last_step and not any(stage.monotone for stage in self.axes.stages):
            # Nothing has to be reached, and a swap before its time would be one more.
            return self.era.on_clock(step)
        return self.era.evaluates_at(step)

    def plain(self, step: int) -> bool:
        """Whether nothing happens between backward and the optimizer's step but what may be captured in a CUDA graph:
        gradients are masked, and some penalties are added to them.
        """
        if self._penalty is not None and not getattr(self._penalty, "captured", False):
            return False
        if self._averages is not None and step <= self.era.last_step:
            return False
        return not self.evaluates_at(step) or not (self.axes.replaces_step or self._reads)

    def reads_gradients(self, step: int) -> bool:
        """Whether the gradients of dead weights are read at this step: where it regrows by them, or averages them."""
        averaged = self._averages is not None and step <= self.era.last_step
        return averaged or ("gradient" in self._reads and self.evaluates_at(step))

    @property
    def adds_gradients(self) -> bool:
        """Whether a penalty is added to the gradients."""
        return self._penalty is not None

    def before_step(self, step: int) -> bool:
        """Between backward and the optimizer's step number `step`. Returns whether the step is to be made."""
        if self._penalty is not None:
            self._penalty.add_gradients(self._moment(step))
        if self.plain(step):
            return True
        if self._averages is not None:
            self._averages.add_step()
        if not self.evaluates_at(step):
            return True
        if "gradient" in self._reads:
            self._keep_gradients()
        if "signs" in self._reads:
            self._signs = {key: weight.detach().sign() for key, weight in self._tensors.weights.items()}
        if self.axes.replaces_step:
            self.evaluate(step)
        return not self.axes.replaces_step

    def after_step(self, step: int) -> bool:
        """After the optimizer's step. Returns whether any mask changed in it."""
        if self._penalty is not None:
            self._penalty.after_step(self._moment(step))
        if self.axes.replaces_step:
            changed, self._changed = self._changed, False
            return changed
        return self.evaluates_at(step) and self.evaluate(step)

    def refresh(self, progress: float) -> bool:
        """Evaluate all masks as at the era's end, for networks that are trained already."""
        assert progress == 1.0, "a method that sees the whole network is evaluated at steps"
        if self.axes.start is not None or self._reads or not self.monotone:
            raise BadOption(
                "methods that begin sparse, read gradients or revive weights are for training; a trained network is "
                "pruned by those that do none of that, such as gmp"
            )
        return self.evaluate(self.era.last_step)

    @property
    def needs_loss(self) -> bool:
        """Whether a penalty's strength is set by the loss before the first step."""
        return isinstance(self._penalty, SetByLoss) and self._penalty.needs_loss

    def release(self) -> None:
        """Let go of what is only needed while masks are evaluated."""
        self._gradients, self._signs = {}, {}
        if self._averages is not None:
            self._averages.release()

    def forget(self, keys: Sequence[str] | None = None) -> None:
        """Masks were replaced from outside; every evaluation begins from what they are."""

    def threshold(self, step: int) -> float:
        """The sparsity that is due after so many steps."""
        rise = self.axes.rise
        if rise is None:
            due = self._target if self.axes.targeted else 0.0
            return due if self.axes.start is not None else due * self.era.progress(step)
        return rise.sparsity(self._moment(step))

    @property
    def start_sparsity(self) -> float:
        """The sparsity before the first step."""
        start = self.axes.start
        if start is None:
            return 0.0
        sparsity = getattr(start, "sparsity", None)
        if sparsity is None:
            return self._target
        return float(sparsity(self._moment(0)) if callable(sparsity) else sparsity)

    def _keep_gradients(self) -> None:
        """Remember the gradients for the evaluation after the optimizer's step, before those of the dead are masked."""
        keep = (lambda g: g) if self.axes.replaces_step else torch.clone  # which looks at them at once
        self._gradients = {key: keep(gradient) for key, gradient in gradients_of(self._tensors.weights).items()}

    def begin(self, gradients: Callable[[], float] | None) -> None:
        """Make the masks that training starts from, and set a penalty's strength.

        Args:
            gradients: where it is asked for, fills all weights' gradients from a batch of training images and returns
                its mean loss.
        """
        if isinstance(self._penalty, SetByLoss) and self._penalty.needs_loss:
            assert gradients is not None, "the penalty's strength is set by the loss before the first step"
            self._penalty.begin(gradients())
        start = self.axes.start
        if start is None:
            return
        if "gradient" in start.reads:
            assert gradients is not None, "the method looks at gradients before the first step"
            gradients()
            self._keep_gradients()
            if not all_finite(self._gradients):
                raise StarfireError(
                    "gradients of the first batch hold NaN or inf; the weights cannot be ranked by them"
                )
        self._apply(start, self._moment(0))
        self._gradients = {}

    def evaluate(self, step: int) -> bool:
        """Bring all masks to what they are after this step. Returns whether any changed.

        Raises StarfireError where weights are not finite; where gradients are not, stages that read them are left out.
        """
        # Where a step overflowed in half precision the optimizer leaves it out, and so do stages that read gradients.
        usable = all_finite(self._gradients)
        if self._norms:
            factors = self._average([_factor(norm) for norm in self._norms.values()])
            self._factors = dict(zip(self._norms, factors, strict=True))
        changed = False
        for stage in self.axes.stages:
            if usable or "gradient" not in stage.reads:
                changed |= self._apply(stage, self._moment(step))
        self._gradients = {}
        if not self.axes.replaces_step:  # else the pruner masks them now
            self._tensors.mask_gradients(self._tensors.touched)  # where the loop still has some
        self._changed = changed
        return changed

    def state_dict(self) -> dict[str, Any]:
        """The method's state: plain numbers, and averages of gradients by layer."""
        state = {"memory": dict(self._memory), "averages": dict(self._averages.by_key) if self._averages else {}}
        return state if self._penalty is None else {**state, "penalty": self._penalty.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint remembered."""
        self._memory.clear()
        self._memory.update(state["memory"])
        if self._penalty is not None:
            self._penalty.load_state_dict(state["penalty"])
        if self._averages is not None:
            self._averages.load(state["averages"])

    def plan(self) -> list[tuple[Layer, int, str]]:
        """(layer, weights left at the era's end as far as that can be told, rule in words); nothing is changed."""
        moment = replace(self._moment(self.era.last_step), memory={})
        left, layers = planned_masks(self.axes, moment, self._layers)
        unit = "weights" if not self.axes.unit.axes else "units"
        rows = []
        for layer in self._tensors.layers:
            units, alive = layers.get(layer.key), left.get(layer.key, self._tensors.masks[layer.key])
            rule = "nothing new" if units is None else f"{units.count - units.live:,}/{units.count:,} {unit}"
            if units is not None and not self.axes.targeted and self._penalty is not None:
                rule = "as the penalty says"
            elif self.axes.aimed:
                rule = f"about {rule}"
            rows.append((layer, int(alive.sum()), rule))
        return rows

    def _moment(self, step: int) -> Moment:
        return Moment(step=step, era=self.era, target=self._target, seed=self._seed, memory=self._memory)

    def _layers(self, masks: Mapping[str, Tensor] | None = None) -> dict[str, LayerUnits]:
        tensors, layers = self._tensors, {}
        for layer in self._pruned:
            key = layer.key
            layers[key] = LayerUnits(
                layer,
                self.axes.unit,
                tensors.weights[key].detach(),
                (masks or tensors.masks)[key],
                gradient=self._gradients.get(key),
                momentum=self._averages.by_key.get(key) if self._averages else None,
                signs=self._signs.get(key),
                factor=self._factors.get(key),
                lists=tensors.list_candidates,
            )
        return layers

    @torch.no_grad()
    def _apply(self, stage: Stage, moment: Moment) -> bool:
        layers = self._layers()
        changes = stage.apply(layers, moment)
        found = by_layer({key: layers[key] for key in changes}, lambda key, units: self._write(units, changes[key]))
        changed = {key: dead for key, dead in found.items() if dead is not None}
        self._tensors.touched.update(dict.fromkeys(changed))
        for key, dead in changed.items():
            self._tensors.counts.set(key, dead)
        return bool(changed)

    def _write(self, units: LayerUnits, change: Change) -> int | None:
        """Bring one layer's mask, weights, state and average to what a change says.

        Returns its dead weights; None where there is nothing to write.
        """
        key, alive_U = units.layer.key, change.alive_U
        lost_U = (units.alive_U ^ alive_U) & units.alive_U if change.lost_U is None else change.lost_U
        cleared = _clear(units, lost_U, (units.weight, *self._tensors.kept(key)))
        if not cleared and count_flags(alive_U) == units.live:
            return None
        mask = units.spread(alive_U)
        if units.unit.axes:  # of a unit that lives on, single weights may be dead
            mask = mask & (units.alive | ~units.spread(units.alive_U))
        if change.values is not None:
            came = mask & ~units.alive
            self._tensors.weights[key].data.add_(torch.where(came, change.values, 0))
        self._tensors.masks[key].copy_(mask)
        return units.layer.weights - (count_flags(alive_U) if not units.unit.axes else int(count_alive(mask)))


def _factor(norm: nn.Module) -> Tensor:
    """gamma / sigma of a BatchNorm, (K,)."""
    assert isinstance(norm, _BatchNorm) and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else norm.weight.detach() * scale


def _usual_interval(length: int, *, replaces_step: bool) -> int:
    """The steps between evaluations in an era of so many: where each costs a step of training, at least ten."""
    least = min(_LEAST_OF_STEPS, length) if replaces_step else 1
    return max(1, least, min(_EVERY, length // _AT_LEAST))


def _clear(units: LayerUnits, lost_U: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Write zeros where units are lost; all other dead weights are zero already. Returns whether any unit is lost."""
    if units.unit.axes or not lost_U.is_cpu:
        write_dead(_like(~units.spread(lost_U), units.alive), tensors)
        return bool(lost_U.any())
    places = places_of(lost_U)
    views = [units.flat(tensor) for tensor in tensors] if len(places) <= _FEW * len(lost_U) else []
    alike = [view for view, tensor in zip(views, tensors, strict=False) if view.data_ptr() == tensor.data_ptr()]
    if len(alike) == len(tensors):
        for view in alike:
            view.index_fill_(0, places, 0)
    else:
        write_dead(_like(~units.spread(lost_U), units.alive), tensors)
    return len(places) > 0


def _like(mask: Tensor, other: Tensor) -> Tensor:
    """A mask with another's strides, so that what is multiplied with it is gone through in the order of memory."""
    return mask if mask.stride() == other.stride() else torch.empty_like(other).copy_(mask)
