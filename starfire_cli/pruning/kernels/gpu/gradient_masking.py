"""Masks gradients on a GPU in one launch; the addresses of masks and gradients stay on the device between calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter, is_

import torch
from torch import Tensor

BLOCK = 4096
"""Elements that one program works on."""

_DTYPE = attrgetter("dtype")
_KEPT = 8  # tables; gradients are new at each step, but mostly lie where others have lain before


@dataclass(frozen=True)
class _Launch:
    """The launch for gradients of one element size: their table, see `mute`, and the number of programs."""

    size: int
    table: Tensor
    programs: int


class _Prepared:
    """The launches for some gradients and masks.

    `others` are the numbers of the gradients that the kernel is not made for.
    """

    def __init__(self, gradients: Sequence[Tensor], masks: Sequence[Tensor], *, capturing: bool) -> None:
        rows: dict[int, list[int]] = defaultdict(list)
        programs: dict[int, int] = defaultdict(int)
        self.others: list[int] = []
        for number, (gradient, mask) in enumerate(zip(gradients, masks, strict=True)):
            size, elements = gradient.element_size(), gradient.numel()
            aligned = gradient.data_ptr() % 16 == 0 and mask.data_ptr() % 4 == 0
            fits = size in (2, 4, 8) and elements < (1 << 31) - BLOCK
            if gradient.stride() == mask.stride() and _without_gaps(mask) and aligned and fits:
                rows[size] += (gradient.data_ptr(), mask.data_ptr(), elements, programs[size])
                programs[size] += -(-elements // BLOCK)
            else:
                self.others.append(number)
        device = gradients[0].device
        self.launches = [_Launch(size, _table(rows[size], device, capturing), programs[size]) for size in rows]
        self._masks = list(masks)
        self._strides, self._dtypes = list(map(Tensor.stride, gradients)), list(map(_DTYPE, gradients))

    def holds(self, gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> bool:
        """Whether these launches fit other gradients and masks: they do where those have the same addresses.

        Masks have to be the same objects; then gradients, which have their shapes, differ in strides and dtype at most.
        """
        return (
            all(map(is_, masks, self._masks))
            and list(map(Tensor.stride, gradients)) == self._strides
            and list(map(_DTYPE, gradients)) == self._dtypes
        )


class GradientMasking:
    """Masks gradients: writes zeros where masks are dead."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], _Prepared] = {}  # by where all of them lie
        self._captured: list[_Prepared] = []  # graphs read their tables, so they have to stay

    def __call__(self, gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        """`gradients` of any layout; masks bool, of the same shapes."""
        device = gradients[0].device
        with torch.cuda.device(device if device.type == "cuda" else -1):  # where Triton launches
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                prepared = _Prepared(gradients, masks, capturing=True)
                self._captured.append(prepared)
            else:
                prepared = self._as_before(gradients, masks)
            for launch in prepared.launches:
                _launch_kernel(launch)
        for number in prepared.others:
            gradients[number].masked_fill_(~masks[number], 0)

    def _as_before(self, gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> _Prepared:
        """The launches for these tensors: those prepared before, if all addresses still hold; called at each step."""
        places = (*map(Tensor.data_ptr, gradients), *map(Tensor.data_ptr, masks))
        known = self._known.get(places)
        if known is None or not known.holds(gradients, masks):
            if known is None and len(self._known) == _KEPT:
                self._known.pop(next(iter(self._known)))
            known = self._known[places] = _Prepared(gradients, masks, capturing=False)
        return known


def _table(numbers: list[int], device: torch.device, capturing: bool) -> Tensor:
    """The numbers as a tensor on the device, without waiting for it."""
    if capturing:  # as arguments of a kernel, since a graph would read the host's memory again at each replay
        table = torch.zeros(len(numbers), dtype=torch.int64, device=device)
        torch._foreach_add_(list(table.unbind()), numbers)
        return table
    on_host = torch.tensor(numbers, pin_memory=device.type == "cuda")  # only from pinned memory does a copy not wait
    return on_host.to(device, non_blocking=True)


def _without_gaps(tensor: Tensor) -> bool:
    """Whether a tensor's elements fill their memory without gaps, in whatever order."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return extent == tensor.numel() > 0


def _launch_kernel(launch: _Launch) -> None:
    from starfire_cli.pruning.kernels.gpu.gradients import mute

    tensors = len(launch.table) // 4
    power = 1 << (tensors - 1).bit_length()
    mute[(launch.programs,)](launch.table, tensors, BYTES=launch.size, TENSORS=power, BLOCK=BLOCK)
