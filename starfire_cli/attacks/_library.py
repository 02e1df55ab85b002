"""Access to attack libraries: imported on first use, and kept from changing torch's random state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import torch

from starfire_cli.errors import StarfireError


def import_package(name: str, attack: str) -> ModuleType:
    """The package that `attack` needs. Raises StarfireError that says how it is installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise StarfireError(
            f"attack {attack} needs the package {name} ({error}); pip install {name}, or the extra starfire-cli[attack]"
        ) from None


@contextlib.contextmanager
def preserve_random_state(device: torch.device) -> Iterator[None]:
    """Restores the state of torch's generators after the block."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=True):
        yield
