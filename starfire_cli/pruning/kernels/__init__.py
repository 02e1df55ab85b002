"""Who computes the masks and keeps zeros zero: one interface, several implementations that agree to the bit.

`torch` is the reference and runs everywhere, `numba` is for CPUs (the extra `fast`), `triton` for CUDA. A method whose
masks follow the common rules (`conv/_rules.py`, `linear/_rules.py`) is computed by any of them; a method with a mask of
its own is asked itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from starfire_cli.errors import BadOption
from starfire_cli.pruning.budget import ConvBudget, LinearBudget
from starfire_cli.pruning.layers import Layer
from starfire_cli.registry import Family

NAN = -1
"""In place of a count: the weights hold NaN or inf, and nothing was done to the layer."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One layer whose mask is due.

    Args:
        layer: as the rules see it (a depthwise layer may be taken for an ordinary one: `layer.groups` counts).
        weight: (K, C, R, S) or (O, I), floating, of any memory format; dead weights are 0.
        alive: bool, of the weight's shape and strides.
        budget: what must be gone.
        others: tensors of the weight's shape that are zeroed where it dies, each of any dtype and strides; where it is
            dead already they are 0.
    """

    layer: Layer
    weight: Tensor
    alive: Tensor
    budget: ConvBudget | LinearBudget
    others: tuple[Tensor, ...] = ()


class Kernels(Protocol):
    """An implementation. None of its calls waits for the device."""

    float_gates: ClassVar[bool]
    """Whether `silence` wants gates of the gradient's dtype (1 alive, 0 dead) in place of bool ones."""

    def prune(self, jobs: Sequence[Job]) -> Tensor:
        """Bring every job's layer down to its budget: `alive` in place, +0.0 written over what dies in all tensors.

        Returns:
            How many weights of each layer are dead now, int64, (jobs,), on the weights' device; or `NAN`.
        """
        ...

    def silence(self, gradients: Sequence[Tensor], gates: Sequence[Tensor]) -> None:
        """Make the gradients of dead weights zero (of either sign), in place; no bit of the others changes."""
        ...


class _Member(Kernels, Protocol):
    @classmethod
    def why_not(cls, device: torch.device) -> str | None:
        """What is missing to run on `device`, as a line for the user; None if nothing is."""
        ...


KERNELS: Family[_Member] = Family("kernels", "starfire_cli.pruning.kernels")
_FASTEST = {"cuda": ("triton", "torch"), "cpu": ("numba", "torch")}


def choose(name: str, device: torch.device) -> tuple[str, Kernels]:
    """The implementation called `name`, or with "auto" the fastest that runs on `device`; and its name.

    Raises BadOption where it does not exist or does not run there.
    """
    if name == "auto":
        order = _FASTEST.get(device.type, ("torch",))
        name = next(n for n in order if n == "torch" or KERNELS.member(n).why_not(device) is None)
        return name, KERNELS.build(name)
    reason = KERNELS.member(name).why_not(device)
    if reason is not None:
        raise BadOption(f"--kernels {name} does not run here: {reason}; --kernels auto takes what does")
    return name, KERNELS.build(name)


def installed(package: str) -> bool:
    """Whether `package` can be imported; it is not imported to find out."""
    return importlib.util.find_spec(package) is not None
