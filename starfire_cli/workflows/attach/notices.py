"""Warnings of an attached pruner, said where the user's own code called, by one of several processes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from starfire_cli.text import some
from starfire_cli.workflows.attach.shards import gathered

_MANY = 0.01  # of the weights of a layer, but for one that is zero as a whole, as some are initialised
_NOT_THE_USERS = ("torch", "starfire_cli", "contextlib", "lightning", "transformers", "accelerate", "ignite")


def warn(text: str) -> None:
    """Warn, naming the nearest line that is not of starfire, torch or a trainer; of several processes, in the first."""
    dist = torch.distributed
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_USERS:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def warn_of_dead_layers(before: str, masks: Mapping[str, Tensor]) -> None:
    """Warn where a layer has no live weight; `before` is where the masks come from."""
    if emptied := [key.removesuffix(".weight") for key, mask in masks.items() if not bool(mask.any())]:
        have = "has" if len(emptied) == 1 else "have"
        warn(f"{before}{some(emptied)} {have} no live weight, so that only a bias comes out")


def warn_of_zeros(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Warn where many weights are zero that masks call alive, as those of a network that was pruned before."""
    zeros = {key: int((gathered(weight.detach()).eq(0) & masks[key]).sum()) for key, weight in weights.items()}
    found = [key for key, count in zeros.items() if _MANY * weights[key].numel() < count < weights[key].numel()]
    if found:
        share = sum(zeros[key] for key in found) / sum(weights[key].numel() for key in found)
        warn(
            f"{share:.2%} of the weights of {some(found)} are zero and count as alive, so that training brings them "
            "back; masks=... of starfire.attach says what stays dead, or pruner.load_state_dict where a run goes on"
        )
