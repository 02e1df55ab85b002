"""The pruner, the one stateful object: masks from layers, method and era, in three calls (paper, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.errors import Mismatch, StarfireError
from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.era_masks import EraMasks
from starfire_cli.pruning.joint_optimizers import AnyOptimizer, keeps_zeros
from starfire_cli.pruning.kernels import choose
from starfire_cli.pruning.kernels.torch import count_alive_again, write_dead
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.masked_weights import MaskedWeights
from starfire_cli.pruning.masks import Masks, digest
from starfire_cli.pruning.methods import Method, NetworkMethod
from starfire_cli.pruning.rewiring import Rewiring
from starfire_cli.pruning.schedule import Era
from starfire_cli.pruning.ties import parameters_of
from starfire_cli.pruning.units import Budget


class Pruner:
    """Keeps the masks of one model. Where the method is `monotone`, zero once is zero always: masks only ever shrink.

    Args:
        model: whose parameters are pruned, in place.
        layers: which of them (see `layers_of_model`, `select`).
        conv: the method for convolutions; a `NetworkMethod` takes linear layers as well.
        linear: the method for linear layers; with a `NetworkMethod` that one, or one that leaves them alone.
        target: the final sparsity threshold, in [0, 1).
        era: when; a `NetworkMethod` has a ramp and a clock of its own.
        masks: what is dead already (a checkpoint's); the weights under it are zeroed.
        kernels: who computes masks: "auto", "torch", "numba", "triton" or "triton:graphs=false"; all give the same, to
            the bit.
        seed: of what a method draws at random.

    Raises BadOption where the kernels do not run on the model's device, or the era is too short for the method.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        *,
        conv: Method | NetworkMethod,
        linear: Method | NetworkMethod,
        target: float,
        era: Era,
        masks: Mapping[str, Tensor] | None = None,
        kernels: str = "auto",
        seed: int = 0,
    ) -> None:
        self.target = target
        self.conv = conv
        self.linear = linear
        parameters = parameters_of(model)
        # A layer that the method leaves alone has no mask, unless it came with one.
        pruned = self._pruned(layers)
        self.layers = [layer for layer in layers if layer.key in pruned or (masks and layer.key in masks)]
        self.left_alone = [layer for layer in layers if layer not in self.layers]
        self.seconds = 0.0
        weights = {layer.key: parameters[layer.key] for layer in self.layers}
        device = next((w.device for w in weights.values()), torch.device("cpu"))
        self.kernels, self._kernels = choose(kernels, device, sum(layer.weights for layer in self.layers))
        self._tensors = MaskedWeights(self.layers, weights, self._kernels)
        self._step = 0
        self._leaves_gradients = False
        self._masks: EraMasks | Rewiring
        if isinstance(conv, NetworkMethod):
            self._masks = Rewiring(model, self._tensors, pruned, axes=conv.axes(), target=target, era=era, seed=seed)
            self.era = self._masks.era
        else:
            self._masks, self.era = EraMasks(self._tensors, self._budget, target, self._kernels), era
        if masks:
            self.load(masks)

    @property
    def masks(self) -> Masks:
        """The masks by state-dict key: bool, True = alive."""
        return self._tensors.masks

    @property
    def monotone(self) -> bool:
        """Whether what is dead stays dead."""
        return self._masks.monotone

    def attach(self, optimizer: AnyOptimizer, ema: nn.Module | None = None) -> None:
        """From now on, clear the state of this optimizer, or of these, and this moving average where weights die."""
        self._tensors.attach(optimizer, ema)

    def use_average(self, average: Callable[[list[Tensor]], list[Tensor]]) -> None:
        """From now on, take means over all ranks with this, of what each of them has for itself."""
        if isinstance(self._masks, Rewiring):
            self._masks.use_average(average)

    def begin(self, gradients: Callable[[], float] | None = None) -> None:
        """Before the first step of a new run: make the masks of a method that is sparse from the start.

        Args:
            gradients: called where the method scores weights by their gradients (`needs_batch`) or weighs a penalty
                against the loss; fills gradients from a batch of training images, and returns its mean loss.
        """
        if isinstance(self._masks, Rewiring):
            self._masks.begin(gradients)

    @property
    def starts_sparse(self) -> bool:
        """Whether `begin` prunes."""
        return isinstance(self._masks, Rewiring) and self._masks.axes.start is not None

    @property
    def start_sparsity(self) -> float:
        """The sparsity that `begin` makes, of what the method prunes."""
        return self._masks.start_sparsity if isinstance(self._masks, Rewiring) else 0.0

    @property
    def needs_batch(self) -> bool:
        """Whether `begin` asks for gradients."""
        start = self._masks.axes.start if isinstance(self._masks, Rewiring) else None
        return start is not None and "gradient" in start.reads

    @property
    def needs_loss(self) -> bool:
        """Whether `begin` asks for gradients, or for the loss that comes with them."""
        return self.needs_batch or (isinstance(self._masks, Rewiring) and self._masks.needs_loss)

    @property
    def adds_gradients(self) -> bool:
        """Whether `after_backward` adds a penalty to the gradients, which must be unscaled then."""
        return isinstance(self._masks, Rewiring) and self._masks.adds_gradients

    @torch.no_grad()
    def after_backward(self) -> bool:
        """Mask the gradients of dead weights: before clipping, weight decay, momentum and averages see them.

        Returns whether the optimizer's step is to be made; methods that evaluate masks in its place leave it out.
        """
        started = perf_counter()
        steps = True
        if isinstance(self._masks, Rewiring):
            steps = self._masks.before_step(self._step + 1)
        if not self._leaves_gradients:
            self._tensors.mask_gradients(self._tensors.touched)
        self.seconds += perf_counter() - started
        return steps

    def leave_gradients(self) -> None:
        """From now on, `after_backward` leaves the gradients of dead weights as they are: nobody reads them."""
        self._leaves_gradients = True

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """After optimizer step number `step` (from 1): evaluate the masks if they are due. True if any changed."""
        started = perf_counter()
        self._step = step
        if self._tensors.optimizer is not None and not keeps_zeros(self._tensors.optimizer):
            self._tensors.enforce(self._tensors.touched)
        if isinstance(self._masks, Rewiring):
            changed = self._masks.after_step(step)
        else:
            changed = self.era.evaluates_at(step) and self.refresh(self.era.progress(step))
        if step >= self.era.last_step:
            self._masks.release()
        self.seconds += perf_counter() - started
        return changed

    @torch.no_grad()
    def refresh(self, progress: float) -> bool:
        """Evaluate every layer's mask at `progress` of the target.

        Returns whether any mask changed; on a GPU, which is not waited for, whether any may have.

        Raises StarfireError naming a layer whose weights are not finite; on a GPU when the counts are next asked for.
        """
        before = dict(self._tensors.counts.known)
        if not self._masks.refresh(progress):
            return False
        return self._tensors.device.type != "cpu" or self.zeros != before

    @torch.no_grad()
    def prune_between_rounds(self, step: int) -> None:
        """Evaluate the masks of a method of rounds as they are due from `step` on, the first of a round.

        Raises StarfireError where weights are not finite.
        """
        assert isinstance(self._masks, Rewiring) and self._masks.axes.rounds is not None
        started = perf_counter()
        self._step = step - 1
        self._masks.evaluate(step)
        self.seconds += perf_counter() - started

    def evaluates_at(self, step: int) -> bool:
        """Whether masks may change at this step."""
        return self._masks.evaluates_at(step) if isinstance(self._masks, Rewiring) else self.era.evaluates_at(step)

    @property
    def plain_step(self) -> bool:
        """Whether the step under way is like most: no gradient of a dead weight is read, and it is not left out."""
        return not isinstance(self._masks, Rewiring) or self._masks.plain(self._step + 1)

    @property
    def reads_gradients(self) -> bool:
        """Whether the gradients of dead weights are read in the step under way."""
        return self.reads_gradients_at(self._step + 1)

    @property
    def zeros(self) -> dict[str, int]:
        """The number of dead weights of each layer. Waits for the device.

        Raises StarfireError naming the first layer that held NaN or inf when its mask was due.
        """
        bad = self._tensors.counts.fetch()
        if bad:
            self._masks.forget(bad)
            raise StarfireError(f"{bad[0]} holds NaN or inf; its smallest weights cannot be told")
        return self._tensors.counts.known

    @torch.no_grad()
    def mask_gradient(self, key: str) -> None:
        """Mask one layer's gradient where it has just been computed, unless those of dead weights are read first."""
        if key in self._tensors.touched and not self.reads_gradients:
            self._tensors.mask_gradients((key,))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Mask all gradients of dead weights, where `after_backward` has been called in this step."""
        self._tensors.mask_gradients(self._tensors.touched)

    @torch.no_grad()
    def enforce(self) -> None:
        """Write zeros where weights are dead, but into no gradients, after they were changed from outside."""
        for key in self._tensors.touched:
            write_dead(self.masks[key], (self._tensors.weights[key], *self._tensors.kept(key)))

    @torch.no_grad()
    def revived(self, *, kept: bool = True) -> dict[str, int]:
        """The dead weights by layer that are not zero, where there are any. Waits for the device.

        Args:
            kept: count those as well whose optimizer state or moving average is not zero.
        """
        found = {}
        for key in self._tensors.touched:
            every = (self._tensors.weights[key], *(self._tensors.kept(key) if kept else ()))
            found[key] = count_alive_again(self.masks[key], every)
        counts = torch.stack(list(found.values())).tolist() if found else []
        return {key: count for key, count in zip(found, counts, strict=True) if count}

    def follow_layout(self) -> None:
        """Lay masks out as their weights are now, where a memory format was changed."""
        if self._tensors.follow_layout() and isinstance(self._masks, EraMasks):
            self._masks.release()

    def counts(self) -> Tensor:
        """`zeros` as a tensor, int64, (layers,), on the weights' device, which is not waited for."""
        return self._tensors.counts.tensor(self._tensors.device)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that are pruned, by key."""
        return dict(self._tensors.weights)

    @property
    def averages(self) -> tuple[Tensor, ...]:
        """The moving averages of the weights that are pruned."""
        return self._tensors.averages

    @property
    def zeroed(self) -> dict[str, tuple[Tensor, ...]]:
        """All tensors that are zero where a layer's weights are dead, by the layer's key."""
        return {key: self._tensors.tensors(key) for key in self._tensors.weights}

    @property
    def warmup_notice(self) -> str | None:
        """A line for the user about a first evaluation of masks that takes seconds; None if it does not."""
        return self._kernels.warmup_notice() if self._masks.uses_kernels else None

    @property
    def masked_layer_count(self) -> int:
        """The number of layers whose gradients `after_backward` masks; it only grows."""
        return len(self._tensors.touched)

    @property
    def capture_key(self) -> tuple[int, bool]:
        """Equal for steps that one captured graph may stand for: as many layers are masked, in or out of the era."""
        step = self._step + 1
        return self.masked_layer_count, self.adds_gradients and self.era.first_step < step <= self.era.last_step

    def threshold(self, step: int) -> float:
        """The sparsity threshold t after `step` steps."""
        if isinstance(self._masks, Rewiring):
            return self._masks.threshold(step)
        return self.target * self.era.progress(step)

    def load(self, masks: Mapping[str, Tensor]) -> None:
        """Take over masks; a layer without one is alive. Weights, state and averages under them are zeroed."""
        self._tensors.load(masks)
        self._masks.forget()

    def state_dict(self) -> dict[str, Any]:
        """The step and the method's state, without the masks."""
        return {"step": self._step, "method": self._masks.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._step = int(state["step"])
        self._masks.load_state_dict(state["method"])

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
        for key, weight in self._tensors.weights.items():
            alive_again = int((weight.ne(0) & ~self.masks[key]).sum()) if zeros[key] else 0
            if alive_again:
                raise Mismatch(f"{key}: {alive_again} pruned weights are not zero")

    def plan(self) -> list[tuple[Layer, int, Budget | str | None]]:
        """(layer, weights left at the era's end, its cuts or rule) as the weights stand now; nothing is changed."""
        return list(self._masks.plan())

    def dead_shares(self, step: int) -> dict[str, float]:
        """The share of each layer's weights that is due after `step` steps, by key, as far as that can be told without
        looking at weights; of a method that shares it out over the network, the network's for every layer.
        """
        if isinstance(self._masks, Rewiring):
            return dict.fromkeys(self._tensors.weights, self._masks.threshold(step))
        return self._masks.dead_shares(self.era.progress(step))

    def reads_gradients_at(self, step: int) -> bool:
        """Whether the gradients of dead weights are read in optimizer step number `step`."""
        return isinstance(self._masks, Rewiring) and self._masks.reads_gradients(step)

    def _pruned(self, layers: Sequence[Layer]) -> set[str]:
        """The keys of the layers that the methods prune."""
        if isinstance(self.conv, NetworkMethod):
            kinds = ("window", "pointwise", "linear") if self.linear == self.conv else ("window", "pointwise")
            return {layer.key for layer in self.conv.axes().chosen([x for x in layers if x.kind in kinds])}
        goal = Goal(target=self.target)
        return {layer.key for layer in layers if self._budget(layer, goal) is not None}

    def _budget(self, layer: Layer, goal: Goal) -> Budget | None:
        method = self.linear if layer.kind == "linear" else self.conv
        assert not isinstance(method, NetworkMethod)
        return method.budget(layer, goal)
