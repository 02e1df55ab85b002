"""Masks of an era: each layer's budget rises with the threshold, and what is due is pruned (paper, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starfire_cli.pruning._tensor_addresses import TensorAddresses
from starfire_cli.pruning.budget import Goal
from starfire_cli.pruning.kernels import Kernels, PreparedLayers
from starfire_cli.pruning.kernels.torch import TorchKernels
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.masked_weights import MaskedWeights
from starfire_cli.pruning.units import Budget, apply_cuts, live_share

BudgetOf = Callable[[Layer, Goal], Budget | None]


class EraMasks:
    """Evaluates the masks of methods that say layer by layer, in whole numbers, what must be gone.

    A layer whose budget is what it was last time is passed over: what died stays dead and counts first, so its mask
    would come out the same.

    Args:
        tensors: what is pruned.
        budget: the cuts of a layer at a goal; None where it is left alone.
        target: the final sparsity threshold.
        kernels: who computes masks.
    """

    monotone = True

    def __init__(self, tensors: MaskedWeights, budget: BudgetOf, target: float, kernels: Kernels) -> None:
        self._tensors, self._budget, self._target, self._kernels = tensors, budget, target, kernels
        # Layers of one shape have one budget; they go by the shape's number.
        shapes = {layer.key: replace(layer, name="", key="") for layer in tensors.layers}
        self._shapes = list(dict.fromkeys(shapes.values()))
        self._shape_of = {key: self._shapes.index(shape) for key, shape in shapes.items()}
        self._alike = [[key for key in shapes if shapes[key] == shape] for shape in self._shapes]
        # Layers whose pattern the kernels know, and those that plain torch prunes one by one.
        final = Goal(target=target)
        due = {x.key: (x, cuts) for x in tensors.layers if (cuts := self._budget(x, final)) is not None}
        self._taken = {key: layer for key, (layer, cuts) in due.items() if kernels.takes(layer, cuts)}
        self._others = [layer for key, (layer, _) in due.items() if key not in self._taken]
        self._budgets: dict[int, Budget] = {}  # of each shape, what it last was
        self._prepared: tuple[TensorAddresses, PreparedLayers] | None = None

    @property
    def uses_kernels(self) -> bool:
        """Whether any layer's pattern is one that the kernels know."""
        return bool(self._taken)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a budget follows from the step alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""

    def refresh(self, progress: float) -> bool:
        """Evaluate every layer's mask at `progress` of the target. Returns whether any may have changed."""
        due = self._due(Goal(target=self._target, progress=progress))
        if not due:
            return False
        tensors = self._tensors
        if not due.keys().isdisjoint(self._taken):
            counts = self._prepared_layers().prune(list(map(due.get, self._taken)))
            tensors.counts.expect(((place, key) for place, key in enumerate(self._taken) if key in due), counts)
        if others := [tensors.job(layer, due[layer.key]) for layer in self._others if layer.key in due]:
            counts = TorchKernels().prune(others)
            tensors.counts.expect(((place, job.layer.key) for place, job in enumerate(others)), counts)
        # Gradients come and go, so that they are in no job; training has let go of them by now, other loops have not.
        tensors.mask_gradients(due)
        return True

    def release(self) -> None:
        """Let go of what is only needed while masks are evaluated."""
        self._prepared = None

    def forget(self, keys: Sequence[str] | None = None) -> None:
        """Look at these layers again at the next evaluation, whatever their budgets; by default at all."""
        if keys is None:
            self._budgets.clear()
        for key in keys or ():
            self._budgets.pop(self._shape_of[key], None)

    def plan(self) -> list[tuple[Layer, int, Budget | None]]:
        """(layer, weights left at the era's end, its cuts) as the weights stand now; nothing is changed."""
        rows = []
        for layer in self._tensors.layers:
            budget = self._budget(layer, Goal(target=self._target))
            weight, alive = self._tensors.weights[layer.key].detach(), self._tensors.masks[layer.key]
            if budget is not None:
                alive = apply_cuts(weight, alive, budget, layer.groups)
            rows.append((layer, int(alive.sum()), budget))
        return rows

    def dead_shares(self, progress: float) -> dict[str, float]:
        """The share of each layer's weights that is due at `progress` of the target, as far as its budget says."""
        goal, shares = Goal(target=self._target, progress=progress), []
        for shape in self._shapes:
            budget = self._budget(shape, goal)
            shares.append(1 - live_share(budget, shape.shape, shape.groups) if budget is not None else 0.0)
        return {key: shares[number] for key, number in self._shape_of.items()}

    def _due(self, goal: Goal) -> Mapping[str, Budget]:
        """The layers whose budgets are not what they were, by key."""
        due: dict[str, Budget] = {}
        for number, shape in enumerate(self._shapes):
            budget = self._budget(shape, goal)
            if budget is not None and budget != self._budgets.get(number):
                self._budgets[number] = budget
                due.update(dict.fromkeys(self._alike[number], budget))
        return due

    def _prepared_layers(self) -> PreparedLayers:
        """All layers that the kernels take; anew where a tensor was replaced since."""
        if self._prepared is None or not self._prepared[0].unchanged(self._tensors.optimizer):
            jobs = [self._tensors.job(x, self._budgets[self._shape_of[key]]) for key, x in self._taken.items()]
            self._prepared = self._tensors.addresses(self._taken), self._kernels.prepare(jobs)
        return self._prepared[1]
