"""The pruner of a model that is trained by somebody else's loop."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption, Mismatch
from starfire_cli.pruning import Masks, Pruner
from starfire_cli.pruning.joint_optimizers import JointOptimizers, keeps_zeros
from starfire_cli.pruning.masks import pack_bits
from starfire_cli.records.attach import PruningSummary, planned_sparsity, planned_text
from starfire_cli.records.train import PlanLayer
from starfire_cli.workflows.attach.first_batch import gradients_of
from starfire_cli.workflows.attach.flat_state import mask_flat_states
from starfire_cli.workflows.attach.hooks import StepHooks
from starfire_cli.workflows.attach.notices import warn, warn_of_zeros
from starfire_cli.workflows.attach.other_state import masks_of_state, refuse_other_state
from starfire_cli.workflows.attach.placement import Placement
from starfire_cli.workflows.attach.revived import OutsideChanges
from starfire_cli.workflows.attach.stale_average import StaleAverage
from starfire_cli.workflows.attach.summary import summary_of
from starfire_cli.workflows.attach.unpruned import UnprunedCopies
from starfire_cli.workflows.train.settings import Pruning

_VERSION = 1
_LIVE: weakref.WeakSet[AttachedPruner] = weakref.WeakSet()


class AttachedPruner:
    """The masks of a model in training, brought up to date at every optimizer step; `starfire.attach` returns it.

    Attributes:
        network: the plain network, without wrappers.
        average: the network of averaged weights, or None.
        core: the `starfire_cli.pruning.Pruner` that does the work.
    """

    def __init__(
        self,
        network: nn.Module,
        average: nn.Module | None,
        optimizers: Sequence[torch.optim.Optimizer],
        core: Pruner,
        pruning: Pruning,
        *,
        left_out: Sequence[tuple[str, str]],
        options: Mapping[str, Any],
        plan: tuple[PlanLayer, ...] | None,
        hooks: bool,
    ) -> None:
        self.network, self.average, self.core = network, average, core
        self._pruning, self._left_out, self.options, self._plan = pruning, tuple(left_out), dict(options), plan
        self._step, self._prepared, self._makes_step, self._looked = 0, False, True, False
        self._place = Placement(network, core.weights)
        self._stale = StaleAverage(network, average)
        core.attach(optimizers[0] if len(optimizers) == 1 else JointOptimizers(optimizers), average)
        self._optimizers, self._outside = tuple(optimizers), OutsideChanges(core, optimizers)
        self._hooks = StepHooks(self, optimizers, core.weights) if hooks else None
        self._attached = True
        self._start = UnprunedCopies(core)
        _LIVE.add(self)

    def begin(self, loss: Callable[[], Tensor] | None) -> None:
        """Make the masks of a method that is sparse from the start, by the gradients of `loss` where it looks at them.

        Nothing else of the network is changed: buffers, gradients and the random generator are put back.
        """
        self._start.keep()
        self.core.begin(None if loss is None else lambda: gradients_of(self.network, loss))
        if loss is not None and self.core.needs_loss:
            self.network.zero_grad(set_to_none=True)

    @property
    def method(self) -> str:
        """The method for convolutions, or for the whole network, as `method=` takes it."""
        return self._pruning.method_spec

    @property
    def fc(self) -> str:
        """The method for linear layers, as `fc=` takes it."""
        return self._pruning.fc_spec

    @property
    def target(self) -> float | None:
        """The final sparsity threshold; None where the method aims at none."""
        return self._pruning.target if self._pruning.targeted else None

    @property
    def era(self) -> tuple[int, int]:
        """The first and last optimizer step of the pruning era."""
        return self.core.era.first_step, self.core.era.last_step

    @property
    def planned(self) -> float | None:
        """The share of the weights of pruned layers that is dead at the end of the era, from 0 to 1.

        Whole units go, which may be more than `target`. None where the method tells it in the end only.
        """
        return None if self._plan is None else planned_sparsity(self._plan)

    @property
    def average_is_stale(self) -> bool:
        """Whether `ema` was never updated, while the network has moved on."""
        return self._stale.is_stale(self.masks)

    @property
    def step(self) -> int:
        """The number of optimizer steps so far, without those that a GradScaler skipped or that had no gradients."""
        return self._step

    @property
    def masks(self) -> Masks:
        """The masks by state-dict key: bool tensors of the weights' shapes, True where a weight is alive."""
        return self.core.masks

    @property
    def sparsity(self) -> float:
        """Dead weights over the weights of all pruned layers, from 0 to 1. Waits for the device.

        Dead weights that were loaded over do not count, until the next step sets them to zero again.
        """
        return sum(self._outside.zeros().values()) / max(1, sum(layer.weights for layer in self.core.layers))

    def after_backward(self) -> bool:
        """Mask the gradients of dead weights now, and add the method's penalty to gradients, if it has one.

        With hooks it needs no call: gradients are masked as they are computed, and penalties are added at the
        optimizer's step. Call it before clipping where a penalty is to be clipped, too. With `hooks=False` call it
        after `backward` and before `optimizer.step()`.

        Returns:
            Whether the optimizer's step is to be made. Methods like RigL evaluate masks in its place; with hooks, the
            step is left out by itself.
        """
        self._check()
        self._prepared = False
        return self.prepare()

    def after_step(self) -> bool:
        """Count a step, and bring the masks up to date. With hooks it needs no call, and does nothing.

        Returns:
            Whether any mask may have changed.

        Raises:
            StarfireError: weights of a layer hold NaN or inf when its mask is due.
        """
        self._check()
        return False if self._hooks is not None else self._finish()

    def prepare(self) -> bool:
        """The hooks' `after_backward`. Returns whether the step is to be made."""
        if not self._prepared:
            self.refuse_moved()
            if not self._step and not self._looked:  # not at `attach`, after which weights and masks may be loaded
                self._looked = True
                warn_of_zeros(self.core.weights, self.masks)
            self._start.end()
            self.core.follow_layout()
            self._outside.undo(self._step + 1)
            mask_flat_states(self._optimizers, self.core.weights, self.masks)
            self._prepared, self._makes_step = True, self.core.after_backward()
        else:
            self.core.mask_gradients()
        return self._makes_step

    def finish(self) -> None:
        """The hooks' `after_step`."""
        self._finish()

    def mask_gradient(self, key: str) -> None:
        """The hooks' call for one gradient that was just computed."""
        self.core.mask_gradient(key)

    def before_evaluation(self) -> None:
        """The hooks' call before a closure, which an optimizer may call with weights on their way to others."""
        if not self._prepared:
            self._outside.undo(self._step + 1)
        if not all(map(keeps_zeros, self._optimizers)):
            self.core.enforce()

    @property
    def uses_gradients(self) -> bool:
        """Whether the step under way reads gradients or adds to them."""
        return self.core.adds_gradients or self.core.reads_gradients

    def _finish(self) -> bool:
        if not self._prepared:
            self.prepare()
        self._step, self._prepared = self._step + 1, False
        if self._step - 1 == self.options["total_steps"]:
            warn(
                f"this is step {self._step}, and starfire.attach was told total_steps={self._step - 1} for the era of "
                f"steps {self.era[0]} to {self.era[1]}; len(loader) * epochs, over the batches of a step, is usual",
            )
        changed = self.core.after_step(self._step)
        self._outside.note()
        return changed

    def verify(self) -> None:
        """Check that every dead weight is zero.

        Raises:
            Mismatch: one is not; the error names the layer. The next step sets it to zero again.
        """
        self._check()
        try:
            self.core.verify()
        except Mismatch as error:
            raise Mismatch(
                f"{error}, as after load_state_dict of an earlier step; weights of step {self.era[1]} and later fit "
                "these masks, and pruner.load_state_dict of the same step as the weights goes back to its masks"
            ) from None

    def summary(self) -> PruningSummary:
        """Measure how sparse the model is now, layer by layer; `print` shows it, and a notebook a table."""
        return summary_of(
            self.core,
            self._pruning,
            zeros=self._outside.zeros(),
            step=self._step,
            left_out=self._left_out,
            plan=self._plan,
            parameters=sum(p.numel() for p in self.network.parameters()),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that pruning needs to go on, for a checkpoint of your own: tensors and plain values, which
        `torch.load(weights_only=True)` reads. Weights and optimizer state are not in it.
        """
        if self.core.reads_gradients:  # of the step under way, which the state does not hold
            self.settle()
        return {
            "version": _VERSION,
            **self._facts(),
            "step": self._step,
            "masks": {k: {"shape": list(m.shape), "bits": pack_bits(m)} for k, m in self.masks.items()},
            "core": self.core.state_dict(),
            "under_way": self._under_way(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, to the same bits. Load model and optimizer as well, in any order.

        Raises:
            BadOption: it is of another method, target, era, ramp, `mask_every`, seed or model, in one line that names
                all that differ; nothing is changed then. `total_steps` may be another, as where a training is made
                longer after its era, and `kernels` and `ema` too.
        """
        self._check()
        refuse_other_state(state, _VERSION, self._facts(), {layer.key: layer.shape for layer in self.core.layers})
        masks = masks_of_state(state)
        self._start.undo()
        self.core.load(masks)
        self.core.load_state_dict(state["core"])
        self._step, self._prepared = int(state["step"]), False
        self._go_on(state.get("under_way", {}))

    def detach(self) -> None:
        """Let go of model and optimizers: no mask changes any more, and dead weights may come back.

        Another `attach` can follow; with `masks=pruner.masks` it goes on from what is dead.
        """
        if self._hooks is not None:
            self._hooks.remove()
        self._attached = False
        _LIVE.discard(self)

    @property
    def is_attached(self) -> bool:
        """Whether `detach` was not called."""
        return self._attached

    def __repr__(self) -> str:
        target = "" if self.target is None else f" target={self.target:g}"
        what = f"method={self.method} fc={self.fc}{target}{planned_text(self.target, self.planned)}"
        layers = f"{len(self.core.layers)} layers"
        return f"<starfire pruner: {what}, {layers}, step {self._step}, era {self.era[0]}:{self.era[1]}>"

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def settle(self) -> None:
        """End a step of training that not all optimizers have made, as before saving."""
        if self._hooks is not None:
            self._hooks.settle()

    def _facts(self) -> dict[str, Any]:
        """Settings that decide which weights die, as plain values; a run goes on with the same."""
        return {
            "method": self.method,
            "fc": self.fc,
            "target": self._pruning.target,
            "era": list(self.era),
            **{name: self.options[name] for name in ("ramp", "mask_every", "seed")},
        }

    def _under_way(self) -> dict[str, Any]:
        """The step that some optimizers have made and others have not."""
        return {} if self._hooks is None else {"prepared": self._prepared, **self._hooks.state_dict()}

    def _go_on(self, under_way: Mapping[str, Any]) -> None:
        if self._hooks is not None and under_way:
            self._prepared, self._makes_step = bool(under_way["prepared"]), True
            self._hooks.load_state_dict(under_way)

    def _check(self) -> None:
        if not self._attached:
            raise BadOption("this pruner was detached from its model; starfire.attach gives another")

    def refuse_moved(self) -> None:
        """Raises StarfireError where the model was moved to another device, or its weights were replaced."""
        key, weight = next(iter(self.core.weights.items()), ("", None))
        if weight is not None:
            self._place.refuse_moved(weight, self.masks[key].device)


def refuse_second(weights: Mapping[str, nn.Parameter]) -> None:
    """Raises BadOption where a pruner is attached to some of these weights already."""
    ours = {id(weight) for weight in weights.values()}
    for other in list(_LIVE):
        if any(id(weight) in ours for weight in other.core.weights.values()):
            raise BadOption(f"the model is being pruned already, by {other!r}; pruner.detach() lets go of it first")
