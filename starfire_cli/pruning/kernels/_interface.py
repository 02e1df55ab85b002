"""The interface of the mask kernels, which compute masks and keep zeros zero: several implementations that agree to the
bit.

`torch` is the reference and runs everywhere, `numba` is for CPUs (the extra `fast`), `triton` for CUDA. The fast ones
take the patterns of `_patterns.py`; all other cuts are made by `torch`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from starfire_cli.errors import BadOption, unknown
from starfire_cli.pruning.layers import Kind, Layer
from starfire_cli.pruning.selection import Bools, Candidates, Floats
from starfire_cli.pruning.units import Budget, Cut
from starfire_cli.registry import Family

NAN = -1
"""In place of a count: the weights hold NaN or inf, and nothing was done to the layer."""


@dataclass(frozen=True, kw_only=True)
class MaskJob:
    """One layer whose mask is due.

    Args:
        layer: its kind, shape and groups count.
        weight: (K, C, R, S) or (O, I), floating, of any memory format; dead weights are 0.
        alive: bool, of the weight's shape and strides.
        budget: what must be gone.
        others: tensors of the weight's shape that are zeroed where it dies, each of any dtype and strides; where it is
            dead already they are 0.
    """

    layer: Layer
    weight: Tensor
    alive: Tensor
    budget: Budget
    others: tuple[Tensor, ...] = ()


class PreparedLayers(Protocol):
    """Layers whose tensors stay where they are, ready to be pruned again and again."""

    def prune(self, budgets: Sequence[Budget | None]) -> Tensor:
        """As `Kernels.prune` for all layers that have a budget; a layer without one is passed over.

        Returns:
            int64, (layers,), on the weights' device: of each layer its count as of when it last had a budget. A later
            call may write over it.
        """
        ...


class Kernels(Protocol):
    """An implementation. None of its calls waits for the device, but for one that captures a CUDA graph."""

    def takes(self, layer: Layer, budget: Budget) -> bool:
        """Whether they know the pattern of a layer's cuts, whatever the counts; other layers must be in no job."""
        ...

    def prune(self, jobs: Sequence[MaskJob]) -> Tensor:
        """Bring every job's layer down to its budget: `alive` in place, +0.0 written over what dies in all tensors.

        Returns:
            How many weights of each layer are dead now, int64, (jobs,), on the weights' device; or `NAN`.
        """
        ...

    def prepare(self, jobs: Sequence[MaskJob]) -> PreparedLayers:
        """The jobs' layers, made ready; nothing is pruned yet, and their budgets only tell what is likely to come."""
        ...

    def mask_gradients(self, gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        """Write +0.0 over the gradients of dead weights, in place; no bit of the others changes. Masks are bool."""
        ...

    def list_candidates(self, score_N: Floats, among_N: Bools, low: float, high: float) -> Candidates:
        """As `selection.list_candidates`, which is for scores in the CPU's memory."""
        ...

    def warmup_notice(self) -> str | None:
        """A line for the user about first calls that take seconds; None if none do."""
        ...


class OneByOne:
    """`PreparedLayers` for kernels that need nothing made ready."""

    def __init__(self, kernels: Kernels, jobs: Sequence[MaskJob]) -> None:
        self._kernels, self._jobs = kernels, tuple(jobs)

    def prune(self, budgets: Sequence[Budget | None]) -> Tensor:
        pairs = zip(self._jobs, budgets, strict=True)
        due = {n: replace(job, budget=budget) for n, (job, budget) in enumerate(pairs) if budget is not None}
        found = self._kernels.prune(list(due.values()))
        counts = torch.zeros(len(self._jobs), dtype=torch.int64, device=found.device)
        return counts.index_copy_(0, torch.tensor(list(due), dtype=torch.int64, device=found.device), found)


class _Member(Kernels, Protocol):
    @classmethod
    def unsupported_reason(cls, device: torch.device) -> str | None:
        """A line for the user about what is missing to run on `device`; None if nothing is."""
        ...


KERNELS: Family[_Member] = Family("kernels", "starfire_cli.pruning.kernels")
_FASTEST = {"cuda": ("triton", "triton:graphs=false"), "cpu": ("numba",)}
_MANY = 1_000_000
_PROVE = frozenset({"cuda"})  # where code is compiled that nobody may have tried yet: believed once seen


def choose(name: str, device: torch.device, weights: int = _MANY) -> tuple[str, Kernels]:
    """The implementation called `name`, or with "auto" the fastest that runs on `device`; and its name.

    A CPU that has fewer than a million `weights` to prune is done with torch before numba is loaded.
    What is compiled for the device is tried on small layers first; "auto" passes over what does not give the same.

    Raises BadOption where it does not exist or does not run there.
    """
    if name == "auto":
        for name in _FASTEST.get(device.type, ()) if weights >= _MANY or device.type != "cpu" else ():
            if KERNELS.member(name.partition(":")[0]).unsupported_reason(device) is None:
                kernels = KERNELS.build(name)
                if device.type not in _PROVE or agrees(kernels, device):
                    return name, kernels
        return "torch", KERNELS.build("torch")
    if name.partition(":")[0] not in KERNELS.names():
        raise unknown("kernels", name, ("auto", *KERNELS.names()))
    reason = KERNELS.member(name.partition(":")[0]).unsupported_reason(device)
    if reason is not None:
        raise BadOption(f"--kernels {name} does not run here: {reason}; --kernels auto takes what does")
    kernels = KERNELS.build(name)
    return KERNELS.spec(kernels), kernels


def agrees(kernels: Kernels, device: torch.device) -> bool:
    """Whether `kernels` run on `device` and give what `torch` gives there, on seven small layers full of ties.

    They are pruned six times, so that what is captured for one combination of layers is also replayed with other
    budgets, and once more when another has been captured.
    """
    shapes = ((20, 33, 3, 3), (64, 72, 1, 1), (12, 8, 3, 3), (6, 5, 1, 7), (13, 21), (9, 10), (70, 80))
    inside, whole, fine = partial(Cut, "", "KC"), partial(Cut, "RS", "C"), partial(Cut, "", "", keep="K")
    tiles = partial(Cut, "", "", reduce="sum", keep="K", tile=3)
    rounds: list[tuple[Budget | None, ...]] = [
        (
            (inside(2),),
            (whole(3),),
            (whole(3),),
            (inside(2), whole(1)),
            (fine(70),),
            (tiles(2),),
            (fine(700),),
        ),
        (None, (whole(4),), None, None, (fine(71),), None, (fine(750),)),
        (None, (whole(5),), (whole(5),), None, (fine(90),), None, (fine(1500),)),
        (
            (inside(4), whole(3)),
            None,
            None,
            (inside(3), whole(2)),
            (fine(150),),
            (tiles(5), fine(70)),
            None,
        ),
        ((inside(4), whole(9)), (whole(50),), (whole(6),), None, None, None, (fine(1501),)),
        (None, (whole(51),), (whole(7),), None, (fine(151),), None, None),
    ]
    outcomes = []
    for implementation in (kernels, KERNELS.build("torch")):
        jobs = []
        for shape, budget in zip(shapes, rounds[0], strict=True):
            assert budget is not None
            weight = torch.arange(math.prod(shape), device=device).mul(37).remainder(23).sub(11).float().reshape(shape)
            kind: Kind = "linear" if len(shape) == 2 else "window" if shape[2] > 1 else "pointwise"
            if len(shape) == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            layer = Layer(name=kind, key=kind, kind=kind, shape=shape)
            alive = weight != 0
            jobs.append(MaskJob(layer=layer, weight=weight, alive=alive, budget=budget, others=(weight.clone(),)))
        try:
            standing = implementation.prepare(jobs)
            for budgets in rounds:
                counts = standing.prune(budgets).tolist()
                outcomes.append([n for n, budget in zip(counts, budgets, strict=True) if budget is not None])
            outcomes.append([t.tolist() for job in jobs for t in (job.weight, job.alive, *job.others)])
            gradients = [torch.ones_like(job.weight) for job in jobs]
            implementation.mask_gradients(gradients, [job.alive for job in jobs])
            outcomes.append([gradient.tolist() for gradient in gradients])
        except Exception:  # noqa: BLE001 - whatever a compiler or a driver may raise
            return False
    half = len(outcomes) // 2
    return outcomes[:half] == outcomes[half:]


def installed(package: str) -> bool:
    """Whether `package` can be imported; it is not imported to find out."""
    return importlib.util.find_spec(package) is not None
