"""Memory of maps, kept from one step to the next.

Every step asks for the same sizes again. From the C library's heap they would leave gaps that take as much again as the
maps, or be given back to the system and cleared page by page in the next step. Here maps lie in large regions, each at
the first place that is free, and neighbours that are free are one place. Large pages save the processor looking up
addresses, as a step through a map goes from channel to channel.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from bisect import insort
from collections import deque
from threading import Lock

import torch
from torch import Tensor

_REGION = 1 << 30  # bytes of address space; memory is taken where it is written
_LINE = 64  # bytes of a cache's line, where a map begins


class Region:
    """A range of addresses, and which of it is free.

    Raises OSError where the system has no such range; AttributeError where it is no POSIX.
    """

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.free = [(0, size)]  # begins and ends, in order, none next to another

    @property
    def unused(self) -> bool:
        """Whether all of it is free."""
        return self.free == [(0, len(self.memory))]

    def take(self, size: int) -> int | None:
        """The first place of `size` bytes; None where there is none."""
        for i, (begin, end) in enumerate(self.free):
            if end - begin >= size:
                self.free[i : i + 1] = [(begin + size, end)] if end - begin > size else []
                return begin
        return None

    def give(self, begin: int, end: int) -> None:
        """Free a place."""
        insort(self.free, (begin, end))
        merged: list[tuple[int, int]] = []
        for first, last in self.free:
            if merged and merged[-1][1] == first:
                merged[-1] = merged[-1][0], last
            else:
                merged.append((first, last))
        self.free = merged

    def return_pages(self) -> None:
        """Give the pages of free places back to the system."""
        for begin, end in self.free:
            first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
            if end > first and hasattr(mmap, "MADV_DONTNEED"):
                self.memory.madvise(mmap.MADV_DONTNEED, first, (end - first) // mmap.PAGESIZE * mmap.PAGESIZE)


class MapMemory:
    """Memory lent as tensors; it is free again when nothing is left of its tensor."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self._returned: deque[tuple[Region, int, int]] = deque()  # by whatever thread let a tensor go
        self._lock = Lock()

    def floats(self, count: int) -> Tensor:
        """A tensor of so many floats, without values."""
        size = -(-4 * count // _LINE) * _LINE
        with self._lock:
            self._sort_in()
            try:
                region, begin = self._place(size)
            except (OSError, AttributeError):
                return torch.empty(count)
        lent = (ctypes.c_byte * size).from_buffer(region.memory, begin)
        weakref.finalize(lent, self._returned.append, (region, begin, begin + size)).atexit = False
        return torch.frombuffer(lent, dtype=torch.float32, count=count)

    def release(self) -> None:
        """Give all that is free back to the system."""
        with self._lock:
            self._sort_in()
            self.regions = [region for region in self.regions if not region.unused]
            for region in self.regions:
                region.return_pages()

    def _place(self, size: int) -> tuple[Region, int]:
        for region in self.regions:
            if (begin := region.take(size)) is not None:
                return region, begin
        made = Region(max(size, _REGION))
        self.regions.append(made)
        return made, made.take(size) or 0

    def _sort_in(self) -> None:
        while self._returned:
            region, begin, end = self._returned.popleft()
            region.give(begin, end)


MAP_MEMORY = MapMemory()  # of this process
