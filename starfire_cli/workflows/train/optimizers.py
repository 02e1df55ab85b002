"""Optimizers by name, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from starfire_cli.errors import BadOption, unknown
from starfire_cli.workflows.train.request import OPTIMIZERS, SCHEDULES

# These have a kernel of their own that updates all weights in one pass, on CPU and CUDA.
_FUSED = ("sgd", "adam", "adamw", "adagrad")


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """The learning rate after each optimizer step, without state: a resumed run needs the step and nothing else.

    Args:
        peak: the rate after warm-up.
        schedule: "step" (a tenth after each of `drops`), "cosine" (to `floor` at the last step) or "constant".
        steps: optimizer steps in all, or of one round.
        warmup: steps over which the rate rises linearly from a tenth of the peak.
        drops: the steps after which it falls.
        factor: what it is multiplied with at a drop.
        floor: where cosine ends, as a fraction of the peak.
        repeats: whether all begins again after the last of `steps`.
    """

    peak: float
    schedule: str
    steps: int
    warmup: int = 0
    drops: tuple[int, ...] = ()
    factor: float = 0.1
    floor: float = 0.0
    repeats: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown("--lr-schedule", self.schedule, SCHEDULES)

    def at(self, step: int) -> float:
        """The rate for the step that follows `step` finished ones."""
        if self.repeats:
            step %= self.steps
        if step < self.warmup:
            return self.peak * (0.1 + 0.9 * (step + 1) / self.warmup)
        if self.schedule == "step":
            return self.peak * self.factor ** sum(step >= drop for drop in self.drops)
        if self.schedule == "cosine":
            x = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.peak * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, x))) / 2)
        return self.peak


def build_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    betas: tuple[float, float],
    norm_weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """The optimizer called `name` over all parameters that train.

    `norm_weight_decay`, if given, is the weight decay of biases and normalisation layers (the parameters with fewer
    than two dimensions); otherwise they have the same as all others, as in the paper. Raises BadOption.
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, object]] = [{"params": parameters, "weight_decay": weight_decay}]
    if norm_weight_decay is not None:
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": norm_weight_decay},
        ]
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": lambda g, **k: torch.optim.SGD(g, momentum=momentum, nesterov=nesterov and momentum > 0, **k),
        "adam": lambda g, **k: torch.optim.Adam(g, betas=betas, **k),
        "adamw": lambda g, **k: torch.optim.AdamW(g, betas=betas, **k),
        "rmsprop": lambda g, **k: torch.optim.RMSprop(g, momentum=momentum, **k),
        "nadam": lambda g, **k: torch.optim.NAdam(g, betas=betas, **k),
        "radam": lambda g, **k: torch.optim.RAdam(g, betas=betas, **k),
        "adagrad": lambda g, **k: torch.optim.Adagrad(g, **k),
    }
    extra: dict[str, object] = {"fused": True} if name in _FUSED and _can_fuse(parameters) else {}
    try:
        return kinds[name](groups, lr=lr, **extra)
    except ValueError as error:
        raise BadOption(f"--optimizer {name} refuses these settings: {error}") from None


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Every group learns at `rate` from now on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
