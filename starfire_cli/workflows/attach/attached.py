"""The pruner of a model that is trained by somebody else's loop."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.pruning import Masks, NetworkMethod, Pruner
from starfire_cli.pruning.joint_optimizers import JointOptimizers
from starfire_cli.pruning.masks import pack_bits, unpack_bits
from starfire_cli.records.attach import LayerSummary, PruningSummary, planned_sparsity, planned_text
from starfire_cli.records.train import PlanLayer
from starfire_cli.workflows.attach.first_batch import gradients_of
from starfire_cli.workflows.attach.hooks import StepHooks
from starfire_cli.workflows.attach.notices import warn, warn_of_zeros
from starfire_cli.workflows.attach.other_state import refuse_other_state
from starfire_cli.workflows.attach.placement import Placement
from starfire_cli.workflows.attach.stale_average import StaleAverage
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
        self._hooks = StepHooks(self, optimizers, core.weights) if hooks else None
        self._attached = True
        self._before_begin: list[tuple[str, Tensor, Tensor]] = []  # layer, tensor, what it held
        _LIVE.add(self)

    def begin(self, loss: Callable[[], Tensor] | None) -> None:
        """Make the masks of a method that is sparse from the start, by the gradients of `loss` where it looks at them.

        Nothing else of the network is changed: buffers, gradients and the random generator are put back.
        """
        if self.core.starts_sparse:  # for a state that is loaded afterwards
            self._before_begin = [(k, t.detach(), t.detach().clone()) for k, ts in self.core.zeroed.items() for t in ts]
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
        """Dead weights over the weights of all pruned layers, from 0 to 1. Waits for the device."""
        return sum(self.core.zeros.values()) / max(1, sum(layer.weights for layer in self.core.layers))

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
            if self._before_begin:  # weights that were loaded since are dead where the masks say so
                self._before_begin = []
                self.core.enforce()
            self.core.follow_layout()
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
        return self.core.after_step(self._step)

    def verify(self) -> None:
        """Check that every dead weight is zero.

        Raises:
            Mismatch: one is not; the error names the layer. A later step sets nothing back that was loaded over it.
        """
        self._check()
        self.core.verify()

    def summary(self) -> PruningSummary:
        """Measure how sparse the model is now, layer by layer; `print` shows it, and a notebook a table."""
        zeros = self.core.zeros
        # Methods of the whole network share weights out among layers as these turn out.
        fixed = self._plan if self._plan and not isinstance(self._pruning.conv, NetworkMethod) else ()
        planned = {row.name: row.sparsity for row in fixed}
        return PruningSummary(
            method=self.method,
            fc=self.fc,
            target=self.target,
            step=self._step,
            first_step=self.era[0],
            last_step=self.era[1],
            layers=tuple(
                LayerSummary(
                    name=x.name,
                    kind=x.kind,
                    shape=x.shape,
                    weights=x.weights,
                    zeros=zeros[x.key],
                    planned=planned.get(x.name),
                )
                for x in self.core.layers
            ),
            left_out=self._left_out,
            planned=self.planned,
            parameters=sum(p.numel() for p in self.network.parameters()),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that pruning needs to go on, for a checkpoint of your own: tensors and plain values, which
        `torch.load(weights_only=True)` reads. Weights and optimizer state are not in it.
        """
        self.settle()
        return {
            "version": _VERSION,
            "method": self.method,
            "fc": self.fc,
            "target": self._pruning.target,
            "era": list(self.era),
            "step": self._step,
            "masks": {k: {"shape": list(m.shape), "bits": pack_bits(m)} for k, m in self.masks.items()},
            "core": self.core.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, to the same bits. Load model and optimizer as well, in any order.

        Raises:
            BadOption: it is of another method, target, era or model; nothing is changed then.
        """
        self._check()
        mine = (self.method, self.fc, self._pruning.target, self.era)
        refuse_other_state(state, _VERSION, mine, {layer.key: layer.shape for layer in self.core.layers})
        masks = {key: unpack_bits(m["bits"].cpu(), tuple(m["shape"])) for key, m in state["masks"].items()}
        self._undo_begin()
        self.core.load(masks)
        self.core.load_state_dict(state["core"])
        self._step, self._prepared = int(state["step"]), False

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

    def _check(self) -> None:
        if not self._attached:
            raise BadOption("this pruner was detached from its model; starfire.attach gives another")

    def refuse_moved(self) -> None:
        """Raises StarfireError where the model was moved to another device, or its weights were replaced."""
        key, weight = next(iter(self.core.weights.items()), ("", None))
        if weight is None:
            return
        moved = self._place.replaced()
        now = weight if moved is None else next(self.network.parameters(), weight)
        if now.device != self.masks[key].device:
            raise StarfireError(
                f"the model was moved from {self.masks[key].device} to {now.device} after starfire.attach; move it "
                "first, then attach"
            )
        if moved is not None:
            raise StarfireError(
                f"{moved} was replaced after starfire.attach, and what stands there now is not pruned; attach "
                "afterwards, or pruner.detach() and attach again, with masks=pruner.masks for what is dead already"
            )
        if now.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise StarfireError(
                "optimizer.step() is being captured in a CUDA graph, whose replays call no hooks; capture forward and "
                "backward only"
            )

    @torch.no_grad()
    def _undo_begin(self) -> None:
        """Give weights, optimizer state and average back what `begin` has taken, unless they were loaded since."""
        for key, tensor, before in self._before_begin:
            if torch.equal(tensor, before.masked_fill(~self.masks[key], 0)):
                tensor.copy_(before)
        self._before_begin = []


def refuse_second(weights: Mapping[str, nn.Parameter]) -> None:
    """Raises BadOption where a pruner is attached to some of these weights already."""
    ours = {id(weight) for weight in weights.values()}
    for other in list(_LIVE):
        if any(id(weight) in ours for weight in other.core.weights.values()):
            raise BadOption(f"the model is being pruned already, by {other!r}; pruner.detach() lets go of it first")
