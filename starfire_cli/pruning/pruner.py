"""The pruner, the one stateful object: masks from layers, method and era, in three calls (paper, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor, nn

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.pruning._counts import Counts
from starfire_cli.pruning._tensor_addresses import TensorAddresses, state_of
from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.kernels import MaskJob, PreparedLayers, choose
from starfire_cli.pruning.kernels.torch import TorchKernels, write_dead
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.masks import Masks, digest
from starfire_cli.pruning.methods import Method
from starfire_cli.pruning.schedule import Era
from starfire_cli.pruning.ties import parameters_of
from starfire_cli.pruning.units import Budget, apply_cuts

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
        kernels: who computes masks: "auto", "torch", "numba", "triton" or "triton:graphs=false"; all give the same, to
            the bit.

    Raises BadOption where the kernels do not run on the model's device.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        *,
        conv: Method,
        linear: Method,
        target: float,
        era: Era,
        masks: Mapping[str, Tensor] | None = None,
        kernels: str = "auto",
    ) -> None:
        self.target = target
        self.era = era
        self.conv = conv
        self.linear = linear
        parameters = parameters_of(model)
        # A layer that the method leaves alone has no mask, unless it came with one.
        final = {layer.key: self._budget(layer, Goal(target=target)) for layer in layers}
        self.layers = [layer for layer in layers if final[layer.key] is not None or (masks and layer.key in masks)]
        self.left_alone = [layer for layer in layers if layer not in self.layers]
        self.seconds = 0.0
        self._weights = {layer.key: parameters[layer.key] for layer in self.layers}
        # Layers of one shape have one budget; they go by the shape's number.
        shapes = {layer.key: replace(layer, name="", key="") for layer in self.layers}
        self._shapes = list(dict.fromkeys(shapes.values()))
        self._shape_of = {key: self._shapes.index(shape) for key, shape in shapes.items()}
        self._alike = [[key for key in shapes if shapes[key] == shape] for shape in self._shapes]
        device = next((w.device for w in self._weights.values()), torch.device("cpu"))
        self.kernels, self._kernels = choose(kernels, device, sum(layer.weights for layer in self.layers))
        # Layers whose pattern the kernels know, and those that plain torch prunes one by one.
        due = {layer.key: (layer, budget) for layer in self.layers if (budget := final[layer.key]) is not None}
        self._taken = {key: layer for key, (layer, budget) in due.items() if self._kernels.takes(layer, budget)}
        self._others = [layer for key, (layer, _) in due.items() if key not in self._taken]
        # Masks have their weight's strides, so that no elementwise pass has to jump about in memory.
        self.masks: Masks = {k: torch.ones_like(w, dtype=torch.bool) for k, w in self._weights.items()}
        self._touched: dict[str, None] = {}  # layers that may have lost something, in the order of their first time
        self._budgets: dict[int, Budget] = {}  # of each shape, what it last was
        self._counts = Counts(self._weights)
        self._prepared: tuple[TensorAddresses, PreparedLayers] | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._shadow: dict[str, Tensor] = {}
        if masks:
            self.load(masks)

    def attach(self, optimizer: torch.optim.Optimizer, ema: nn.Module | None = None) -> None:
        """From now on, clear this optimizer's state and this moving average where weights die."""
        self._optimizer = optimizer
        shadow = parameters_of(ema) if ema is not None else {}
        assert ema is None or shadow.keys() >= self.masks.keys(), "the moving average's keys are not the model's"
        self._shadow = {key: shadow[key] for key in self.masks if key in shadow}
        self._prepared = None
        self._enforce(self._touched)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Mask the gradients of dead weights: before clipping, weight decay, momentum and averages see them."""
        started = perf_counter()
        self._mask_gradients(self._touched)
        self.seconds += perf_counter() - started

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """After optimizer step number `step` (from 1): evaluate the masks if the era says so. True if any changed."""
        started = perf_counter()
        if self._optimizer is not None and type(self._optimizer) not in ELEMENTWISE:
            self._enforce(self._touched)
        changed = self.era.evaluates_at(step) and self.refresh(self.era.progress(step))
        if step >= self.era.last_step:
            self._prepared = None  # and what it holds on to
        self.seconds += perf_counter() - started
        return changed

    @torch.no_grad()
    def refresh(self, progress: float) -> bool:
        """Evaluate every layer's mask at `progress` of the target.

        A layer whose budget is what it was last time is passed over: what died stays dead and counts first, so its
        mask would come out the same. Returns whether any mask changed; on a GPU, which is not waited for, whether any
        may have.

        Raises StarfireError naming a layer whose weights are not finite; on a GPU when the counts are next asked for.
        """
        due = self._due(Goal(target=self.target, progress=progress))
        if not due:
            return False
        if not due.keys().isdisjoint(self._taken):
            counts = self._prepared_layers().prune(list(map(due.get, self._taken)))
            self._counts.expect(((place, key) for place, key in enumerate(self._taken) if key in due), counts)
        if others := [self._job(layer, due[layer.key]) for layer in self._others if layer.key in due]:
            counts = TorchKernels().prune(others)
            self._counts.expect(((place, job.layer.key) for place, job in enumerate(others)), counts)
        # Gradients come and go, so that they are in no job; training has let go of them by now, other loops have not.
        self._mask_gradients(due)
        if next(iter(self._weights.values())).device.type != "cpu":
            return True
        before = dict(self._counts.known)
        return self.zeros != before

    @property
    def zeros(self) -> dict[str, int]:
        """The number of dead weights of each layer. Waits for the device.

        Raises StarfireError naming the first layer that held NaN or inf when its mask was due.
        """
        bad = self._counts.fetch()
        for key in bad:
            self._budgets.pop(self._shape_of[key], None)
        if bad:
            raise StarfireError(f"{bad[0]} holds NaN or inf; its smallest weights cannot be told")
        return self._counts.known

    def counts(self) -> Tensor:
        """`zeros` as a tensor, int64, (layers,), on the weights' device, which is not waited for."""
        device = next((w.device for w in self._weights.values()), torch.device("cpu"))
        return self._counts.tensor(device)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that are pruned, by key."""
        return dict(self._weights)

    @property
    def warmup_notice(self) -> str | None:
        """A line for the user about a first evaluation of masks that takes seconds; None if it does not."""
        return self._kernels.warmup_notice() if self._taken else None

    @property
    def masked_layer_count(self) -> int:
        """Of how many layers `after_backward` masks the gradients; it only grows."""
        return len(self._touched)

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
            self._counts.set(layer.key, layer.weights - int(mask.sum()))
        self._budgets.clear()
        dead = [key for key, count in self._counts.known.items() if count]
        self._touched.update(dict.fromkeys(dead))
        self._enforce(dead)

    def digest(self) -> str:
        """SHA-256 of the masks (see `masks.digest`)."""
        return digest(self.masks)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each layer's mask."""
        return {key: digest({key: mask}) for key, mask in self.masks.items()}

    @torch.no_grad()
    def verify(self) -> None:
        """Raises Mismatch naming the layer if a dead weight is not zero."""
        zeros = self.zeros
        for key, weight in self._weights.items():
            alive_again = int((weight.ne(0) & ~self.masks[key]).sum()) if zeros[key] else 0
            if alive_again:
                raise Mismatch(f"{key}: {alive_again} pruned weights are not zero")

    def plan(self) -> list[tuple[Layer, int]]:
        """(layer, weights left at the era's end) as the weights stand now; nothing is changed."""
        goal = Goal(target=self.target)
        left = []
        for layer in self.layers:
            budget = self._budget(layer, goal)
            weight, alive = self._weights[layer.key].detach(), self.masks[layer.key]
            if budget is not None:
                alive = apply_cuts(weight, alive, budget, layer.groups)
            left.append((layer, int(alive.sum())))
        return left

    def _due(self, goal: Goal) -> dict[str, Budget]:
        """The layers whose budgets are not what they were, by key."""
        due: dict[str, Budget] = {}
        for number, shape in enumerate(self._shapes):
            budget = self._budget(shape, goal)
            if budget is not None and budget != self._budgets.get(number):
                self._budgets[number] = budget
                due.update(dict.fromkeys(self._alike[number], budget))
        return due

    def _budget(self, layer: Layer, goal: Goal) -> Budget | None:
        return self.linear.budget(layer, goal) if layer.kind == "linear" else self.conv.budget(layer, goal)

    def _mask_gradients(self, keys: Iterable[str]) -> None:
        """Mask the gradients that these layers have."""
        pairs = [(g, self.masks[key]) for key in keys if (g := self._weights[key].grad) is not None]
        if pairs:
            self._kernels.mask_gradients([g for g, _ in pairs], [mask for _, mask in pairs])

    def _prepared_layers(self) -> PreparedLayers:
        """All layers that the kernels take; anew where a tensor was replaced since."""
        if self._prepared is None or not self._prepared[0].unchanged(self._optimizer):
            jobs = [self._job(layer, self._budgets[self._shape_of[key]]) for key, layer in self._taken.items()]
            weights = [self._weights[key] for key in self._taken]
            addresses = TensorAddresses(weights, self._optimizer, list(self._shadow.values()))
            self._prepared = addresses, self._kernels.prepare(jobs)
        return self._prepared[1]

    def _job(self, layer: Layer, budget: Budget) -> MaskJob:
        weight, mask = self._weights[layer.key], self.masks[layer.key]
        self._touched[layer.key] = None
        others = tuple(self._kept(weight, layer.key))
        return MaskJob(layer=layer, weight=weight.detach(), alive=mask, budget=budget, others=others)

    @torch.no_grad()
    def _enforce(self, keys: Iterable[str]) -> None:
        """Write zeros where these layers are dead: weights, gradients, moving average, optimizer state."""
        for key in keys:
            weight = self._weights[key]
            gradient = () if weight.grad is None else (weight.grad,)
            write_dead(self.masks[key], (weight, *self._kept(weight, key), *gradient))

    def _kept(self, weight: nn.Parameter, key: str) -> list[Tensor]:
        """The tensors that are zero where the weight is dead and kept from step to step: optimizer state, moving
        average.
        """
        shadow = self._shadow.get(key)
        return [*state_of(weight, self._optimizer).values(), *(() if shadow is None else (shadow,))]
