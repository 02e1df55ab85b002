"""Gradients of dead weights become zero on a GPU, in one launch; the device keeps what it was told of their places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 4096
"""Elements that one program works on."""

_KEPT = 8  # tables; gradients are new at each step, but mostly lie where others have lain before


@dataclass(frozen=True)
class _Launch:
    """Of gradients of the same element size: their table, see `mute`, and how many programs there are."""

    size: int
    table: Tensor
    programs: int


class Muting:
    """Writes zeros over gradients where masks say so."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[list[_Launch], list[int]]] = {}
        self._captured: list[list[_Launch]] = []  # graphs read these tables, so they have to stay

    def __call__(self, gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        """`gradients` of any layout; masks bool, of the same shapes."""
        device = gradients[0].device
        with torch.cuda.device(device if device.type == "cuda" else -1):  # where Triton launches
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                launches, others = _prepared(gradients, masks, capturing=True)
                self._captured.append(launches)
            else:
                both = (*gradients, *masks)
                key = (*map(Tensor.data_ptr, both), *map(Tensor.stride, both), *((g.shape, g.dtype) for g in gradients))
                if key not in self._known:
                    if len(self._known) == _KEPT:
                        self._known.pop(next(iter(self._known)))
                    self._known[key] = _prepared(gradients, masks, capturing=False)
                launches, others = self._known[key]
            for launch in launches:
                _mute(launch)
        for number in others:
            gradients[number].masked_fill_(~masks[number], 0)


def _prepared(
    gradients: Sequence[Tensor], masks: Sequence[Tensor], *, capturing: bool
) -> tuple[list[_Launch], list[int]]:
    """What to launch, and the numbers of the gradients that the kernel is not made for."""
    rows: dict[int, list[int]] = defaultdict(list)
    programs: dict[int, int] = defaultdict(int)
    others = []
    for number, (gradient, mask) in enumerate(zip(gradients, masks, strict=True)):
        size, elements = gradient.element_size(), gradient.numel()
        aligned = gradient.data_ptr() % 16 == 0 and mask.data_ptr() % 4 == 0
        fits = size in (2, 4, 8) and elements < (1 << 31) - BLOCK
        if gradient.stride() == mask.stride() and _without_gaps(mask) and aligned and fits:
            rows[size] += (gradient.data_ptr(), mask.data_ptr(), elements, programs[size])
            programs[size] += -(-elements // BLOCK)
        else:
            others.append(number)
    device = gradients[0].device
    return [_Launch(size, _table(rows[size], device, capturing), programs[size]) for size in rows], others


def _table(numbers: list[int], device: torch.device, capturing: bool) -> Tensor:
    """The numbers on the device, which is not waited for."""
    if capturing:  # as arguments of a kernel, since a graph would read the host's memory again at each replay
        table = torch.zeros(len(numbers), dtype=torch.int64, device=device)
        torch._foreach_add_(list(table.unbind()), numbers)
        return table
    on_host = torch.tensor(numbers, pin_memory=device.type == "cuda")  # only from pinned memory does a copy not wait
    return on_host.to(device, non_blocking=True)


def _without_gaps(tensor: Tensor) -> bool:
    """Whether its elements fill the memory that they lie in, in whatever order."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return extent == tensor.numel() > 0


def _mute(launch: _Launch) -> None:
    from starfire_cli.pruning.kernels._triton_gradients import mute

    tensors = len(launch.table) // 4
    power = 1 << (tensors - 1).bit_length()
    mute[(launch.programs,)](launch.table, tensors, BYTES=launch.size, TENSORS=power, BLOCK=BLOCK)
