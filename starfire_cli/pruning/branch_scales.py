"""Scales on residual branches under L1, solved by accelerated proximal gradient (Huang and Wang, arXiv 1707.01213).

The network has no further parameters: between steps a branch's last layer holds its weight and bias times the scale,
so that forward, backward, checkpoints and averages know nothing of it. The optimizer sees them without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from starfire_cli.pruning.channels.branches import Branch, branches_of
from starfire_cli.pruning.masked_weights import MaskedWeights
from starfire_cli.pruning.moment import Moment


@dataclass(frozen=True, kw_only=True)
class BranchScales:
    """A scale on each residual branch, from 1 down to exactly 0.

    Args:
        strength: of the L1 term.
        momentum: of the proximal gradient.
    """

    strength: float
    momentum: float = 0.9

    def bind(self, model: nn.Module, tensors: MaskedWeights) -> BoundScales:
        """The scales of a model. Raises BadOption where it has no residual branches that can be found."""
        return BoundScales(self, [Scaled(branch, model) for branch in branches_of(model)], tensors)


def accelerated_step(
    scale: Tensor, gradient: Tensor, velocity: Tensor, *, rate: float, strength: float, momentum: float
) -> tuple[Tensor, Tensor]:
    """Scales and their velocities after one step of accelerated proximal gradient in Nesterov's form; never below 0."""
    moved = scale - rate * gradient
    shrunk = moved.sign() * (moved.abs() - rate * strength).clamp_min(0)
    velocity = shrunk - scale + momentum * velocity
    return (shrunk + momentum * velocity).clamp_min(0), velocity


class Scaled:
    """A branch, and the parameters of its last layer without the scale."""

    def __init__(self, branch: Branch, model: nn.Module) -> None:
        self.branch = branch
        last = model.get_submodule(branch.last)
        self.parameters = {
            f"{branch.last}.{name}": parameter for name, parameter in last.named_parameters(recurse=False)
        }
        self.plain: dict[str, Tensor] = {}  # until the first step, what the parameters are

    def unscale(self, scale: Tensor) -> Tensor:
        """Give the parameters and their gradients as the optimizer sees them; returns the gradient of the scale."""
        gradient = torch.zeros_like(scale)
        for key, parameter in self.parameters.items():
            if key not in self.plain:
                self.plain[key] = parameter.detach().clone()
            plain = self.plain[key]
            if parameter.grad is not None:
                gradient += (parameter.grad * plain).sum()
                parameter.grad.mul_(scale)
            parameter.data.copy_(plain)
        return gradient

    def scale(self, scale: Tensor) -> None:
        """Take over what the optimizer made of the parameters, and give them their scale again."""
        for key, parameter in self.parameters.items():
            if key in self.plain:
                self.plain[key].copy_(parameter.detach())
                parameter.data.mul_(scale)


class BoundScales:
    """The scales of one model's branches.

    Args:
        axis: the settings.
        branches: what they are on.
        tensors: the weights that have masks.
    """

    captured: ClassVar[bool] = True

    def __init__(self, axis: BranchScales, branches: Sequence[Scaled], tensors: MaskedWeights) -> None:
        self._axis, self._branches, self._tensors = axis, branches, tensors
        first = next(iter(branches[0].parameters.values()))
        self.scales = torch.ones(len(branches), device=first.device, dtype=first.dtype)
        self._velocities, self._gradients = torch.zeros_like(self.scales), torch.zeros_like(self.scales)

    @torch.no_grad()
    def add_gradients(self, moment: Moment) -> None:
        for number, branch in enumerate(self._branches):
            self._gradients[number] = branch.unscale(self.scales[number])

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        if moment.era.first_step < moment.step <= moment.era.last_step:
            self._move()
        for number, branch in enumerate(self._branches):
            branch.scale(self.scales[number])
        if moment.step == moment.era.last_step:
            self._kill()

    def state_dict(self) -> dict[str, Any]:
        plain = {key: tensor for branch in self._branches for key, tensor in branch.plain.items()}
        return {"scales": self.scales, "velocities": self._velocities, "plain": plain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scales.copy_(state["scales"])
        self._velocities.copy_(state["velocities"])
        for branch in self._branches:
            for key, parameter in branch.parameters.items():
                if key in state["plain"]:
                    branch.plain[key] = parameter.detach().clone().copy_(state["plain"][key])

    def _move(self) -> None:
        optimizer = self._tensors.optimizer
        assert isinstance(optimizer, torch.optim.Optimizer), "a penalty is moved by one optimizer"
        settings, axis = optimizer.param_groups[0], self._axis
        rate = float(settings["lr"])
        known = self._gradients.isfinite()  # a step that overflowed in half precision moves nothing
        scales, velocities = accelerated_step(
            self.scales, self._gradients, self._velocities, rate=rate, strength=axis.strength, momentum=axis.momentum
        )
        self.scales.copy_(torch.where(known, scales, self.scales))
        self._velocities.copy_(torch.where(known, velocities, self._velocities))

    def _kill(self) -> None:
        """The weights of branches whose scale is zero are dead; their last layer gives zero from now on."""
        dead = {
            f"{layer}.weight"
            for branch, scale in zip(self._branches, self.scales.tolist(), strict=True)
            if not scale
            for layer in branch.branch.layers
        }
        masks = self._tensors.masks
        self._tensors.load(
            {key: torch.zeros_like(mask) if key in dead else mask.clone() for key, mask in masks.items()}
        )
