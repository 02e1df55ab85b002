"""The one stateful object: layers x method x era -> masks, and the training loop's three calls (paper, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter

import torch
from torch import Tensor, nn

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.pruning.budget import ConvBudget, Goal, LinearBudget
from starfire_cli.pruning.era import Era
from starfire_cli.pruning.families import ConvMethod, LinearMethod
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.masks import Masks, digest

# With a gradient of zero and a state of zero these leave a weight of zero where it is, so that masking gradients and
# clearing state when a weight dies is all that has to be done. Any other optimizer is enforced after every step.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
)


class Pruner:
    """Keeps the masks of one model. Once zero, always zero: a mask only ever shrinks.

    Args:
        model: whose parameters are pruned, in place.
        layers: which of them (see `layers_of_model`, `select`).
        conv: the method for convolutions.
        linear: the method for linear layers.
        target: the final sparsity threshold, in [0, 1).
        era: when.
        masks: what is dead already (a checkpoint's); the weights under it are zeroed.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        *,
        conv: ConvMethod,
        linear: LinearMethod,
        target: float,
        era: Era,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.target = target
        self.era = era
        self.conv = conv
        self.linear = linear
        parameters = dict(model.named_parameters())
        # A layer that the method leaves alone has no mask, unless it came with one.
        goal = Goal(target=target)
        self.layers = [
            layer for layer in layers if self._budget(layer, goal) is not None or (masks and layer.key in masks)
        ]
        self.left_alone = [layer for layer in layers if layer not in self.layers]
        self.seconds = 0.0
        self._weights = {layer.key: parameters[layer.key] for layer in self.layers}
        # Masks have their weight's strides, so that no elementwise pass has to jump about in memory.
        self.masks: Masks = {k: torch.ones_like(w, dtype=torch.bool) for k, w in self._weights.items()}
        self._keep: dict[str, Tensor] = {}  # the same as floats, for layers that lost something: the hot path
        self._budgets: dict[str, ConvBudget | LinearBudget | None] = {}
        self.zeros: dict[str, int] = {layer.key: 0 for layer in self.layers}
        self._optimizer: torch.optim.Optimizer | None = None
        self._shadow: dict[str, Tensor] = {}
        if masks:
            self.load(masks)

    def attach(self, optimizer: torch.optim.Optimizer, ema: nn.Module | None = None) -> None:
        """From now on, clear this optimizer's state and this moving average where weights die."""
        self._optimizer = optimizer
        shadow = dict(ema.named_parameters()) if ema is not None else {}
        assert ema is None or shadow.keys() >= self.masks.keys(), "the moving average's keys are not the model's"
        self._shadow = {key: shadow[key] for key in self.masks if key in shadow}
        self._enforce(self.masks)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Mask the gradients of dead weights: before clipping, weight decay, momentum and averages see them."""
        started = perf_counter()
        pairs = [(g, keep) for key, keep in self._keep.items() if (g := self._weights[key].grad) is not None]
        if pairs:
            torch._foreach_mul_([g for g, _ in pairs], [keep for _, keep in pairs])
        self.seconds += perf_counter() - started

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """After optimizer step number `step` (from 1): evaluate the masks if the era says so. True if any changed."""
        started = perf_counter()
        if self._optimizer is not None and type(self._optimizer) not in ELEMENTWISE:
            self._enforce({key: self.masks[key] for key in self._keep})
        changed = self.era.evaluates_at(step) and self.refresh(self.era.progress(step))
        self.seconds += perf_counter() - started
        return changed

    @torch.no_grad()
    def refresh(self, progress: float) -> bool:
        """Evaluate every layer's mask at `progress` of the target. Returns whether any changed.

        A layer whose budget is what it was last time is passed over: what died stays dead and counts first, so its
        mask would come out the same.
        """
        goal = Goal(target=self.target, progress=progress)
        due = {
            layer.key: (layer, budget)
            for layer in self.layers
            if (budget := self._budget(layer, goal)) is not None and budget != self._budgets.get(layer.key)
        }
        for key in due:  # before anything changes, so that what is saved after this error is whole
            weight = self._weights[key]
            # A sum with a NaN or inf in it is not finite, and twenty times as fast as asking each weight.
            if not bool(weight.sum().isfinite()) and not bool(weight.isfinite().all()):
                raise StarfireError(f"{key} holds NaN or inf; its smallest weights cannot be told")
        born: Masks = {}
        for key, (layer, budget) in due.items():
            self._budgets[key] = budget
            weight, alive = self._weights[key], self.masks[key]
            if isinstance(budget, LinearBudget):
                mask = self.linear.mask(layer, weight, alive, budget)
            else:
                mask = self.conv.mask(layer, weight, alive, budget)
            zeros = layer.weights - int(mask.sum())
            if zeros != self.zeros[key]:
                self.zeros[key] = zeros
                alive.copy_(mask)
                born[key] = alive
        self._enforce(born)
        return bool(born)

    def threshold(self, step: int) -> float:
        """The sparsity threshold t after `step` steps."""
        return self.target * self.era.progress(step)

    def load(self, masks: Mapping[str, Tensor]) -> None:
        """Take over masks; a layer without one is alive. Weights, state and averages under them are zeroed."""
        for layer in self.layers:
            if layer.key not in masks:
                continue
            mask = masks[layer.key]
            if tuple(mask.shape) != layer.shape:
                raise StarfireError(f"the mask of {layer.key} has shape {tuple(mask.shape)}, its weight {layer.shape}")
            self.masks[layer.key].copy_(mask)
            self.zeros[layer.key] = layer.weights - int(mask.sum())
        self._budgets.clear()
        self._enforce({k: m for k, m in self.masks.items() if self.zeros[k]})

    def digest(self) -> str:
        """SHA-256 of the masks (see `masks.digest`)."""
        return digest(self.masks)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each layer's mask."""
        return {key: digest({key: mask}) for key, mask in self.masks.items()}

    @torch.no_grad()
    def verify(self) -> None:
        """Raises Mismatch naming the layer if a dead weight is not zero."""
        for key, weight in self._weights.items():
            alive_again = int((weight.ne(0) & ~self.masks[key]).sum()) if self.zeros[key] else 0
            if alive_again:
                raise Mismatch(f"{key}: {alive_again} pruned weights are not zero")

    def plan(self) -> list[tuple[Layer, int]]:
        """(layer, weights left at the era's end) as the weights stand now; nothing is changed."""
        goal = Goal(target=self.target)
        left = []
        for layer in self.layers:
            budget = self._budget(layer, goal)
            weight, alive = self._weights[layer.key].detach(), self.masks[layer.key]
            if isinstance(budget, LinearBudget):
                alive = self.linear.mask(layer, weight, alive, budget)
            elif budget is not None:
                alive = self.conv.mask(layer, weight, alive, budget)
            left.append((layer, int(alive.sum())))
        return left

    def _budget(self, layer: Layer, goal: Goal) -> ConvBudget | LinearBudget | None:
        return self.linear.budget(layer, goal) if layer.kind == "linear" else self.conv.budget(layer, goal)

    @torch.no_grad()
    def _enforce(self, masks: Mapping[str, Tensor]) -> None:
        """Write zeros where `masks` are dead: weights, gradients, moving average, optimizer state of their shape.

        `masked_fill_` rather than a product: inf * 0 is NaN and -1 * 0 is -0.0.
        """
        for key, mask in masks.items():
            if not self.zeros[key]:
                continue
            weight, dead = self._weights[key], ~mask
            for tensor in (*self._state_of(weight), weight, weight.grad, self._shadow.get(key)):
                if tensor is not None:
                    tensor.masked_fill_(dead, 0)
            if key in self._keep:
                self._keep[key].copy_(mask)
            else:
                self._keep[key] = mask.to(weight.dtype)

    def _state_of(self, weight: nn.Parameter) -> Iterable[Tensor]:
        state = self._optimizer.state.get(weight, {}) if self._optimizer is not None else {}
        return [v for v in state.values() if isinstance(v, Tensor) and v.shape == weight.shape]
