"""The axes that make a sparse training method: what is pruned, how it is shared out, when, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from starfire_cli.pruning.layer_units import LayerUnits, Unit, by_layer
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.masked_weights import MaskedWeights
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.regrowth import Regrowth
from starfire_cli.pruning.removal import Removal, Rise, share_out, weakest
from starfire_cli.pruning.rounds import Rounds
from starfire_cli.pruning.scores import READS


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """The outcome of one stage for one layer.

    Args:
        alive_U: the units that live from now on.
        lost_U: the units that lived and whose weights and state become zero; None: those that live no longer. A unit
            of them that is in `alive_U` has gone and come back.
        values: weights of the layer's shape, written where units have come back; None: zeros.
    """

    alive_U: Tensor
    lost_U: Tensor | None = None
    values: Tensor | None = None


class Stage(Protocol):
    """One pass over all layers at an evaluation.

    Attributes:
        monotone: whether nothing that is dead ever comes back.
        reads: what is read beside weights and masks: "gradient" of all weights, "momentum" (their running average),
            "signs" (which the weights had before the optimizer's step), "batchnorm" (the one that follows a layer).
    """

    @property
    def monotone(self) -> bool: ...

    @property
    def reads(self) -> frozenset[str]: ...

    def apply(self, layers: Mapping[str, LayerUnits], moment: Moment) -> dict[str, Change]:
        """The changes by layer; layers that stay as they are may be missing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rewire:
    """Some units go, and others may come back in their place.

    Args:
        removal: which go.
        regrowth: which come back; None: none.
    """

    removal: Removal
    regrowth: Regrowth | None = None

    @property
    def monotone(self) -> bool:
        return self.regrowth is None

    @property
    def reads(self) -> frozenset[str]:
        return self.removal.reads | (self.regrowth.reads if self.regrowth is not None else frozenset())

    def apply(self, layers: Mapping[str, LayerUnits], moment: Moment) -> dict[str, Change]:
        gone = self.removal.choose(layers, moment)
        back = self.regrowth.choose(layers, gone, moment) if self.regrowth is not None else {}
        keeps = self.regrowth is None or self.regrowth.keeps_value

        def change(key: str, units: LayerUnits) -> Change:
            # Only what lives goes, and only what is dead or has just gone comes back, so that each is one flip.
            alive_U = units.alive_U
            for flipped in (gone, back):
                alive_U = alive_U ^ flipped[key] if key in flipped else alive_U
            return Change(alive_U=alive_U, lost_U=None if keeps else gone.get(key))

        return by_layer({key: units for key, units in layers.items() if key in gone or key in back}, change)


class BoundPenalty(Protocol):
    """A penalty on one model's weights.

    One whose `add_gradients` may be captured in a CUDA graph, as long as it acts or does not act, has the attribute
    `captured`, which is True.
    """

    def add_gradients(self, moment: Moment) -> None:
        """Add the penalty's gradient to the weights' gradients, which are unscaled and those of all ranks."""
        ...

    def after_step(self, moment: Moment) -> None:
        """After the optimizer's step: proximal steps, noise."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The penalty's state, in plain values and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        ...


@runtime_checkable
class SetByLoss(BoundPenalty, Protocol):
    """A penalty whose strength may depend on the loss at the start.

    Attributes:
        needs_loss: whether it does.
    """

    @property
    def needs_loss(self) -> bool: ...

    def begin(self, loss: float) -> None:
        """Before the first step of a new run: the mean loss of a batch, without the penalty."""
        ...


class Penalty(Protocol):
    """A term of the loss, in closed form."""

    def bind(self, model: nn.Module, tensors: MaskedWeights) -> BoundPenalty:
        """The penalty on the weights of a model."""
        ...


@dataclass(frozen=True, kw_only=True)
class SparseStart:
    """Sparse from the first step on.

    Args:
        allocation: "uniform", "erk", "er" or "global" (with a score only).
        score: the highest live on (see `scores.py`); "random": any do.
        sparsity: at the start; None: the target.
        fan_in: each output has as many live weights as the others, or one more; for a random start.
    """

    allocation: str = "erk"
    score: str = "random"
    sparsity: float | None = None
    fan_in: bool = False

    @property
    def monotone(self) -> bool:
        return True

    @property
    def reads(self) -> frozenset[str]:
        return READS.get(self.score, frozenset())

    def apply(self, layers: Mapping[str, LayerUnits], moment: Moment) -> dict[str, Change]:
        sparsity = moment.target if self.sparsity is None else self.sparsity
        if self.score != "random":
            goes = weakest(self.allocation, self.score, layers, sparsity, final=sparsity)
            return {key: Change(alive_U=layers[key].alive_U & ~gone_U) for key, gone_U in goes.items()}
        changes = {}
        for key, dead in share_out(self.allocation, layers, sparsity, final=sparsity).items():
            units = layers[key]
            due = min(dead - (units.count - units.live), units.live - 1)
            if due <= 0:
                continue
            if self.fan_in:
                gone_U = _even_fan_in(units, due, key, moment)
            else:
                gone_U = moment.choose(key, units.alive_U, due, "start", order=units.order)
            changes[key] = Change(alive_U=units.alive_U & ~gone_U)
        return changes


def _even_fan_in(units: LayerUnits, due: int, key: str, moment: Moment) -> Tensor:
    """`due` random live weights, so that all outputs keep as many, but for one."""
    outputs = len(units.weight)
    live, more = divmod(units.live - due, outputs)
    rows = units.alive_U.reshape(outputs, -1)
    goes = []
    for k, alive in enumerate(rows):
        keep = moment.choose(key, alive, min(int(alive.sum()), live + (k < more)), f"start {k}", order=units.order)
        goes.append(alive & ~keep)
    return torch.stack(goes).reshape(-1)


@dataclass(frozen=True, kw_only=True)
class Shrinking:
    """Channels are removed from the network while it trains, at the ends of epochs of the era.

    Args:
        threshold: a filter or input channel is dead if no weight of it is larger than this.
        interval: epochs between removals; None: 10, or a fifth of the era where that is less.
    """

    threshold: float
    interval: int | None = None

    def due(self, epoch: int, first: float, last: float) -> bool:
        """Whether channels are removed after so many epochs, in an era from `first` to `last` epochs: at every interval
        of it and at the end of the epoch in which it ends.
        """
        interval = self.interval or max(1, min(10, int((last - first) / 5)))
        if not first < epoch < last + 1:
            return False
        return epoch >= last or (epoch - int(first)) % interval == 0


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A sparse training method as a point on its axes.

    Args:
        unit: what lives and dies as one.
        start: the stage that makes the masks before the first step; None: all weights live.
        stages: what happens at each evaluation, one after the other.
        every: optimizer steps between evaluations; None: 100, or a twentieth of the era where that is less.
        doublings: shares of the era after each of which the steps between evaluations are twice as many.
        ramp: how the sparsity rises in the era (see `schedule.py`).
        replaces_step: whether an evaluation takes the place of the optimizer's step, as in RigL.
        span: the era by default, as shares of the training; None: the recipe's.
        dense_first: whether the first convolution stays as it is.
        dense_last: whether the last linear layer does.
        dense_depthwise: whether depthwise convolutions do.
        targeted: whether the sparsity that comes out is the target.
        aimed: whether it is not, but lies near the target, which sets the thresholds.
        penalty: a term of the loss; None: none.
        periods: in how many parts the era is divided; None: it is one.
        rounds: masks are evaluated between rounds of training, not at steps; None: there is one round.
        shrinking: what is removed from the network while it trains; None: nothing.
    """

    unit: Unit = field(default_factory=Unit)
    start: Stage | None = None
    stages: tuple[Stage, ...] = ()
    every: int | None = None
    doublings: tuple[float, ...] = ()
    ramp: str = "linear"
    replaces_step: bool = False
    span: tuple[float, float] | None = None
    dense_first: bool = False
    dense_last: bool = False
    dense_depthwise: bool = False
    targeted: bool = True
    aimed: bool = False
    penalty: Penalty | None = None
    periods: int | None = None
    rounds: Rounds | None = None
    shrinking: Shrinking | None = None

    @property
    def monotone(self) -> bool:
        """Whether "once zero, always zero" holds."""
        return all(stage.monotone for stage in self.stages) and (self.rounds is None or self.rounds.monotone)

    @property
    def has_era(self) -> bool:
        """Whether anything happens after the first step."""
        return bool(self.stages) or self.penalty is not None

    def chosen(self, layers: Sequence[Layer]) -> list[Layer]:
        """Those of some layers that the method prunes."""
        first = next((x for x in layers if x.kind != "linear"), None) if self.dense_first else None
        last = next((x for x in reversed(layers) if x.kind == "linear"), None) if self.dense_last else None
        return [
            layer
            for layer in layers
            if layer is not first and layer is not last and not (self.dense_depthwise and layer.depthwise)
        ]

    @property
    def rise(self) -> Rise | None:
        """The stage in which the sparsity rises to the target, if there is one."""
        removals = (getattr(stage, "removal", None) for stage in self.stages)
        return next((removal for removal in removals if isinstance(removal, Rise)), None)
