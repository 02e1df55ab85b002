"""Warnings of an attached pruner, said where the user's own code called, by one of several processes."""

from __future__ import annotations

import sys
import warnings

import torch

_NOT_THE_USERS = ("torch", "starfire_cli", "contextlib")


def warn(text: str) -> None:
    """Warn, naming the nearest line that is neither of torch nor of starfire; of several processes, in the first."""
    dist = torch.distributed
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_USERS:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
