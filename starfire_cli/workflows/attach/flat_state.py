"""State of LBFGS, one vector for all parameters, as it is where the dead weights are no parameters any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_LEAST_CURVATURE = 1e-10  # below which LBFGS takes up no pair itself


@torch.no_grad()
def mask_flat_states(
    optimizers: Iterable[torch.optim.Optimizer], weights: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]
) -> None:
    """Write zeros where weights are dead into the directions and gradients that LBFGS remembers.

    Its next direction is a sum of these, so that dead weights stay zero at every evaluation within a step. Curvatures
    are computed anew of what is left; pairs without any are forgotten. Nothing is changed where all of it is zero.
    """
    keys = {id(weight): key for key, weight in weights.items()}
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            held = optimizer.param_groups[0]["params"]
            if held and optimizer.state.get(held[0]):
                _mask(optimizer.state[held[0]], [(p.numel(), masks.get(keys.get(id(p), ""))) for p in held])


def _mask(state: dict[str, Any], parts: list[tuple[int, Tensor | None]]) -> None:
    vectors = [v for name in ("d", "prev_flat_grad") if isinstance(v := state.get(name), Tensor)]
    directions, steps = state.get("old_dirs") or [], state.get("old_stps") or []
    changed, offset = False, 0
    for count, mask in parts:
        if mask is not None:
            dead = ~mask.reshape(-1)
            for vector in (*vectors, *directions, *steps):
                part = vector[offset : offset + count]
                changed = bool(part[dead].any()) or changed
                part.masked_fill_(dead, 0)
        offset += count
    if not changed:
        return
    pairs = [(y, s) for y, s in zip(directions, steps, strict=True) if y.dot(s) > _LEAST_CURVATURE]
    directions[:], steps[:] = [y for y, _ in pairs], [s for _, s in pairs]
    if state.get("ro") is not None:
        state["ro"][:] = [1.0 / y.dot(s) for y, s in pairs]
    if pairs:
        y, s = pairs[-1]
        state["H_diag"] = y.dot(s) / y.dot(y)
