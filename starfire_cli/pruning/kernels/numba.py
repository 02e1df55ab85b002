"""CPU kernels: loops that numba compiles for the processor at hand (the extra `fast`)."""

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
from starfire_cli.pruning.kernels import KERNELS, NAN, MaskJob, OneByOne, installed
from starfire_cli.pruning.kernels._patterns import ConvCounts, LinearCounts, counts_of, groups_of
from starfire_cli.pruning.kernels.torch import TorchKernels, write_dead
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.selection import Bools, Candidates, Floats, list_candidates
from starfire_cli.pruning.units import Budget

_PIECE = 1 << 20  # gradients of one layer that a thread takes at a time
_NEURONS = 1 << 18  # weights of a linear layer, likewise, in whole neurons


@KERNELS.register("numba")
@dataclass(frozen=True, kw_only=True)
class NumbaKernels:
    """Kernels for float32 weights in contiguous or channels_last memory; all others fall back to `torch`."""

    @classmethod
    def unsupported_reason(cls, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"numba computes on the CPU, the weights are on {device.type}"
        return None if installed("numba") else 'numba is not installed (pip install "starfire-cli[fast]")'

    def takes(self, layer: Layer, budget: Budget) -> bool:
        return counts_of(layer, budget) is not None

    def prune(self, jobs: Sequence[MaskJob]) -> Tensor:
        layers = [(_Linear if _of_single_weights(job) else _Whole)(job) for job in jobs]
        in_threads([task for layer in layers for task in layer.tasks()])
        return torch.tensor(in_threads([(layer.rest, layer.finish) for layer in layers]))

    def prepare(self, jobs: Sequence[MaskJob]) -> OneByOne:
        return OneByOne(self, jobs)

    def mask_gradients(self, gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
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

    def list_candidates(self, score_N: Floats, among_N: Bools, low: float, high: float) -> Candidates:
        if score_N.dtype != np.float32 or not score_N.flags.c_contiguous or not among_N.flags.c_contiguous:
            return list_candidates(score_N, among_N, low, high)
        bounds = np.array([low, high], np.float32).view(np.int32)
        places, scores = np.empty(len(score_N), np.int32), np.empty(len(score_N), np.int32)
        found, above = _loops().listed(score_N.view(np.int32), among_N.view(np.uint8), *bounds, places, scores)
        return Candidates(places=places[:found].astype(np.intp), scores=scores[:found].view(np.float32), above=above)

    def warmup_notice(self) -> str | None:
        if _loops().is_compiled(_loops().clear):  # of all loops the one that is always needed
            return None
        return "numba compiles the loops for masks when the era begins: some ten seconds, once"


class _Whole:
    """A layer that one thread prunes."""

    rest = 0

    def __init__(self, job: MaskJob) -> None:
        self._job, self._count = job, 0

    def tasks(self) -> list[tuple[int, Callable[[], None]]]:
        return [(self._job.weight.numel(), self._prune)]

    def finish(self) -> int:
        """The number of dead weights, or `NAN`; once all `tasks` are done."""
        return self._count

    def _prune(self) -> None:
        job, counts = self._job, counts_of(self._job.layer, self._job.budget)
        if not isinstance(counts, ConvCounts) or not _fits(job):
            self._count = int(TorchKernels().prune([job]))
        elif not _loops().finite(_flat(job.weight.detach()).view(np.int32)):
            self._count = NAN
        else:
            like, unlike = _others(job)
            self._count = job.weight.numel() - _prune_convolution(job, counts, like)
            write_dead(job.alive, unlike)


class _Linear:
    """A linear layer that loses single weights; as `_Whole`, but all threads search it.

    Args:
        rest: what there is to do in `finish`.
    """

    def __init__(self, job: MaskJob) -> None:
        self._job = job
        self._bits_OI, self._alive_OI = job.weight.detach().numpy().view(np.int32), job.alive.numpy().view(np.uint8)
        O, I = self._bits_OI.shape
        self._low_OG, self._strongest_O = np.empty((O, -(-I // _loops().GLANCE)), np.int32), np.empty(O, np.int32)
        self._living: list[int] = []
        self.rest = self._low_OG.size

    def tasks(self) -> list[tuple[int, Callable[[], None]]]:
        O, I = self._bits_OI.shape
        step = max(1, _NEURONS // max(1, I))
        return [(step * I, partial(self._weigh, slice(first, first + step))) for first in range(0, O, step)]

    def finish(self) -> int:
        if -1 in self._living:
            return NAN
        counts = counts_of(self._job.layer, self._job.budget)
        assert isinstance(counts, LinearCounts)
        size, living, guarded = self._bits_OI.size, sum(self._living), int(np.count_nonzero(self._strongest_O >= 0))
        missing = max(0, min(counts.weights, size - guarded) - (size - living))
        if missing:
            like, unlike = _others(self._job)
            others = tuple(other.numpy().view(np.int32) for other in like) or (self._bits_OI,)
            _loops().lightest(self._bits_OI, self._alive_OI, self._low_OG, self._strongest_O, missing, others)
            write_dead(self._job.alive, unlike)
        return size - living + missing

    def _weigh(self, piece: slice) -> None:
        arrays = (self._bits_OI, self._alive_OI, self._low_OG, self._strongest_O)
        self._living.append(_loops().weigh(*(array[piece] for array in arrays)))


def _of_single_weights(job: MaskJob) -> bool:
    """Whether a job is one for `_Linear`."""
    counts = counts_of(job.layer, job.budget)
    return isinstance(counts, LinearCounts) and not counts.tiles and _fits(job) and job.weight.is_contiguous()


def _fits(job: MaskJob) -> bool:
    """Whether the loops support a layer; all others fall back to `torch`."""
    weight = job.weight
    return weight.dtype == torch.float32 and _dense(weight) and job.alive.stride() == weight.stride()


def _others(job: MaskJob) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors laid out in memory as the weight is, and the others."""
    fits = [x.dtype == torch.float32 and x.stride() == job.weight.stride() for x in job.others]
    pairs = list(zip(fits, job.others, strict=True))
    return [x.detach() for like, x in pairs if like], [x for like, x in pairs if not like]


def _prune_convolution(job: MaskJob, counts: ConvCounts, like: Sequence[Tensor]) -> int:
    """Prune a convolution; returns the number of live weights."""
    loops, groups = _loops(), groups_of(job.layer, counts)
    places = [_as_KWC(x) for x in (job.alive, job.weight.detach(), *like)]
    arrays = [np.ascontiguousarray(x) for x in places]  # copies only where they are not in channels_last memory
    alive_KWC, (bits_KWC, *others) = arrays[0].view(np.uint8), (x.view(np.int32) for x in arrays[1:])
    beside = tuple(others) or (bits_KWC,)
    living = 0
    if counts.in_window or not counts.kernels:
        living = loops.window(bits_KWC, alive_KWC, counts.in_window, beside)
    if counts.kernels:
        living = loops.kernels(bits_KWC, alive_KWC, min(counts.kernels, len(bits_KWC) // groups), groups, beside)
    for place, array in zip(places, arrays, strict=True):
        if array is not place:
            place[...] = array
    return int(living)


def _dense(tensor: Tensor) -> bool:
    """Whether a tensor is contiguous in memory in one of the two orders."""
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
    from starfire_cli.pruning.kernels.cpu import loops as _loops  # numba takes a tenth of a second to import

    return _loops
