"""CPU: loops compiled by numba for the processor at hand (the extra `fast`), each layer in one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starfire_cli.pruning._threads import in_threads
from starfire_cli.pruning.budget import ConvBudget, LinearBudget
from starfire_cli.pruning.kernels import KERNELS, NAN, Job, OneByOne, installed
from starfire_cli.pruning.kernels.torch import TorchKernels, write_dead

_PIECE = 1 << 20  # gradients of one layer that a thread takes at a time


@KERNELS.register("numba")
@dataclass(frozen=True, kw_only=True)
class NumbaKernels:
    """Float32 weights in contiguous or channels_last memory; all others go the way of `torch`."""

    @classmethod
    def why_not(cls, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"numba computes on the CPU, the weights are on {device.type}"
        return None if installed("numba") else 'numba is not installed (pip install "starfire-cli[fast]")'

    def prune(self, jobs: Sequence[Job]) -> Tensor:
        return torch.tensor(in_threads([(job.weight.numel(), partial(_prune, job)) for job in jobs]))

    def standing(self, jobs: Sequence[Job]) -> OneByOne:
        return OneByOne(self, jobs)

    def silence(self, gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        clear = _loops().clear
        tasks: list[tuple[int, Callable[[], object]]] = []
        for gradient, mask in zip(gradients, masks, strict=True):
            if gradient.dtype != torch.float32 or gradient.stride() != mask.stride() or not _dense(gradient):
                write_dead(mask, [gradient])
                continue
            bits, alive = _flat(gradient).view(np.int32), _flat(mask).view(np.uint8)
            for start in range(0, bits.size, _PIECE):
                piece = slice(start, start + _PIECE)
                tasks.append((bits[piece].size, partial(clear, alive[piece], bits[piece])))
        in_threads(tasks)


def _prune(job: Job) -> int:
    weight, alive, budget = job.weight.detach(), job.alive, job.budget
    loops = _loops()
    fits = weight.dtype == torch.float32 and _dense(weight) and alive.stride() == weight.stride()
    if not fits or (isinstance(budget, LinearBudget) and (budget.tiles or not weight.is_contiguous())):
        return int(TorchKernels().prune([job]))
    if not loops.finite(_flat(weight).view(np.int32)):
        return NAN
    like = [x.detach() for x in job.others if x.dtype == torch.float32 and x.stride() == weight.stride()]
    if isinstance(budget, LinearBudget):
        bits_OI = weight.numpy().view(np.int32)
        others = tuple(other.numpy().view(np.int32) for other in like) or (bits_OI,)
        living = int(loops.fine(bits_OI, alive.numpy().view(np.uint8), budget.weights, others))
    else:
        living = _prune_convolution(job, budget, weight, like)
    write_dead(alive, [x for x in job.others if x.dtype != torch.float32 or x.stride() != weight.stride()])
    return weight.numel() - living


def _prune_convolution(job: Job, budget: ConvBudget, weight: Tensor, like: Sequence[Tensor]) -> int:
    """How many weights live once it is done."""
    loops, groups = _loops(), job.layer.groups
    places = [_as_KWC(x) for x in (job.alive, weight, *like)]
    arrays = [np.ascontiguousarray(x) for x in places]  # copies only where they are not in channels_last memory
    alive_KWC, (bits_KWC, *others) = arrays[0].view(np.uint8), (x.view(np.int32) for x in arrays[1:])
    beside = tuple(others) or (bits_KWC,)
    living = 0
    if budget.in_window or not budget.kernels:
        living = loops.window(bits_KWC, alive_KWC, budget.in_window, beside)
    if budget.kernels:
        living = loops.kernels(bits_KWC, alive_KWC, min(budget.kernels, len(bits_KWC) // groups), groups, beside)
    for place, array in zip(places, arrays, strict=True):
        if array is not place:
            place[...] = array
    return int(living)


def _dense(tensor: Tensor) -> bool:
    """Whether its numbers lie side by side in memory, in one of the two orders."""
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _flat(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A dense tensor in the order of its memory."""
    return tensor.as_strided((tensor.numel(),), (1,)).numpy()


def _as_KWC(tensor_KCRS: Tensor) -> np.ndarray[Any, Any]:
    """A view (K, R * S, C); in channels_last memory, and for 1 x 1 kernels, without gaps."""
    K, C, R, S = tensor_KCRS.shape
    if tensor_KCRS.is_contiguous():
        return tensor_KCRS.reshape(K, C, R * S).transpose(1, 2).numpy()
    return tensor_KCRS.permute(0, 2, 3, 1).reshape(K, R * S, C).numpy()


def _loops() -> ModuleType:
    from starfire_cli.pruning.kernels import _loops  # numba takes a tenth of a second to import

    return _loops
