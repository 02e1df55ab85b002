"""Plain torch kernels, on any device: the reference for all the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from starfire_cli.pruning._threads import in_threads
from starfire_cli.pruning.kernels import KERNELS, NAN, MaskJob, OneByOne
from starfire_cli.pruning.kernels.cpu.few import bit_view, cost, prune_few
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.selection import Bools, Candidates, Floats, list_candidates
from starfire_cli.pruning.units import Budget, apply_cuts

_MANY = 1 << 21  # gradients on a CPU that are worth all threads
_PIECE = 1 << 18  # gradients that one takes at a time: torch makes factors of their masks, in memory of its own


@KERNELS.register("torch")
@dataclass(frozen=True, kw_only=True)
class TorchKernels:
    """The reference kernels: layers of which little is due run side by side (`cpu/few.py`), the others one by one by
    `units`.
    """

    @classmethod
    def unsupported_reason(cls, device: torch.device) -> str | None:
        return None

    def takes(self, layer: Layer, budget: Budget) -> bool:
        return True

    def prune(self, jobs: Sequence[MaskJob]) -> Tensor:
        on_cpu = [job for job in jobs if job.weight.device.type == "cpu"]
        done = iter(in_threads([(cost(job), partial(prune_few, job)) for job in on_cpu]))
        counts = [next(done) if job.weight.device.type == "cpu" else None for job in jobs]
        found = [_by_units(job) if n is None else torch.tensor(n) for job, n in zip(jobs, counts, strict=True)]
        return torch.stack(found) if found else torch.zeros(0, dtype=torch.int64)

    def prepare(self, jobs: Sequence[MaskJob]) -> OneByOne:
        return OneByOne(self, jobs)

    def mask_gradients(self, gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        if gradients[0].device.type != "cpu" or sum(map(Tensor.numel, gradients)) < _MANY:
            torch._foreach_mul_(list(map(bit_view, gradients)), list(masks))  # see `write_dead`
            return
        pieces = [piece for pair in zip(gradients, masks, strict=True) for piece in _pieces(*pair)]
        in_threads([(mask.numel(), partial(write_dead, mask, [gradient])) for gradient, mask in pieces])

    def list_candidates(self, score_N: Floats, among_N: Bools, low: float, high: float) -> Candidates:
        return list_candidates(score_N, among_N, low, high)

    def warmup_notice(self) -> str | None:
        return None


def _pieces(gradient: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors in the same pieces, of `_PIECE` numbers or whole outputs."""
    if gradient.numel() <= _PIECE:
        return iter([(gradient, mask)])
    outputs = max(1, _PIECE * len(gradient) // gradient.numel())
    return zip(torch.split(gradient, outputs), torch.split(mask, outputs), strict=True)


def _by_units(job: MaskJob) -> Tensor:
    """Prune a single layer, however much is due; returns its count, a scalar."""
    weight, alive = job.weight, job.alive
    if not is_finite(weight):
        return torch.tensor(NAN, device=weight.device)
    alive.copy_(apply_cuts(weight, alive, job.budget, job.layer.groups))
    write_dead(alive, (weight, *job.others))
    return alive.numel() - count_alive(alive)


def count_alive(mask: Tensor) -> Tensor:
    """The number of live weights, a scalar; on a CPU by numpy, which is ten times faster at it."""
    if mask.device.type != "cpu":
        return mask.sum()
    return torch.tensor(np.count_nonzero(mask.numpy()))


def is_finite(weight: Tensor) -> bool:
    """Whether there is neither NaN nor inf: first by the sum, which is much faster than a look at each weight."""
    weight = weight if weight.dtype.itemsize > 1 else weight.float()  # float8 cannot add
    return bool(weight.sum().isfinite()) or bool(weight.isfinite().all())


def write_dead(mask: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write +0.0 where the mask is dead; no bit of the rest changes, be it NaN or -0.0."""
    for tensor in tensors:
        bit_view(tensor).mul_(mask)  # several times as fast as masked_fill_


def count_alive_again(mask: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The number of dead places where any of the tensors is not zero, int64, (), on their device."""
    found = tensors[0].ne(0)
    for tensor in tensors[1:]:
        found |= tensor.ne(0).to(found.device)
    return (found & ~mask).sum()
