"""Rules of SGD, Adam and AdamW as the numbers that one step needs, rounded to float32 once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What the steps here know of an optimizer's settings: of anything else, only the value that changes nothing.
_NEUTRAL: dict[str, Any] = {"dampening": 0, "maximize": False, "amsgrad": False, "differentiable": False}


@dataclass(frozen=True, kw_only=True)
class SGDRule:
    """g += decay w; m = momentum m + g; w -= rate m, or with Nesterov rate (g + momentum m)."""

    rate: np.float32
    momentum: np.float32
    decay: np.float32
    nesterov: bool


@dataclass(frozen=True, kw_only=True)
class AdamRule:
    """w *= keep; g += decay w; m = beta1 m + rest1 g; v = beta2 v + rest2 g g; w -= size m / (root sqrt(v) + eps).

    Adam has `keep` 1, AdamW `decay` 0 (Kingma and Ba, 2014, algorithm 1; Loshchilov and Hutter, 2017, algorithm 2).
    """

    keep: np.float32
    decay: np.float32
    beta1: np.float32
    rest1: np.float32
    beta2: np.float32
    rest2: np.float32
    size: np.float32
    root: np.float32
    eps: np.float32


Rule = SGDRule | AdamRule


def state_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...] | None:
    """The tensors that the optimizer keeps of each entry, as it calls them; None where its steps are not known here."""
    group = optimizer.param_groups[0]
    if any(one.get(name, value) != value for one in optimizer.param_groups for name, value in _NEUTRAL.items()):
        return None
    if type(optimizer) is torch.optim.SGD:
        return ("momentum_buffer",) if group["momentum"] else ()
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        return "exp_avg", "exp_avg_sq"
    return None


def new_state(optimizer: torch.optim.Optimizer, count: int, device: torch.device) -> dict[str, Any]:
    """The state of `count` entries before their first step, as the optimizer would save it."""
    state: dict[str, Any] = {name: torch.zeros(count, device=device) for name in state_names(optimizer) or ()}
    if type(optimizer) is not torch.optim.SGD:
        state["step"] = torch.zeros((), dtype=torch.float32)
    return state


def rule_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], state: Mapping[str, Any]) -> Rule:
    """The rule of the step to come of a parameter with that group and state; counts the step in the state."""
    rate, decay = float(group["lr"]), float(group["weight_decay"])
    if type(optimizer) is torch.optim.SGD:
        return SGDRule(
            rate=np.float32(rate),
            momentum=np.float32(group["momentum"]),
            decay=np.float32(decay),
            nesterov=bool(group["nesterov"]),
        )
    counted: Tensor = state["step"]
    counted += 1
    step, (beta1, beta2) = float(counted), group["betas"]
    decoupled = type(optimizer) is torch.optim.AdamW
    return AdamRule(
        keep=np.float32(1 - rate * decay if decoupled else 1),
        decay=np.float32(0 if decoupled else decay),
        beta1=np.float32(beta1),
        rest1=np.float32(1 - beta1),
        beta2=np.float32(beta2),
        rest2=np.float32(1 - beta2),
        size=np.float32(rate / (1 - beta1**step)),
        root=np.float32((1 - beta2**step) ** -0.5),
        eps=np.float32(group["eps"]),
    )
