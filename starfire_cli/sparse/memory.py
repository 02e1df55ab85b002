"""Memory planning: maps share memory where no two of them are needed at the same time.

Only maps of the same layout share: the zeros around one are then the zeros around the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from starfire_cli.sparse.convolution import Place
from starfire_cli.sparse.layout import Layout


@dataclass
class _Slot:
    layout: Layout
    channels: int
    free: bool = False
    offset: int = 0


@dataclass
class Slots:
    """Slots of memory for maps, in one region."""

    kept: bool
    _slots: list[_Slot] = field(default_factory=list)

    def take(self, layout: Layout, channels: int) -> int:
        """Allocate a slot for a map: the free one that fits best, or a new one."""
        fitting = [i for i, slot in enumerate(self._slots) if slot.free and slot.layout == layout]
        if not fitting:
            self._slots.append(_Slot(layout, channels))
            return len(self._slots) - 1
        best = min(fitting, key=lambda i: abs(self._slots[i].channels - channels))
        slot = self._slots[best]
        slot.free, slot.channels = False, max(slot.channels, channels)
        return best

    def release(self, number: int) -> None:
        """Free a slot."""
        self._slots[number].free = True

    def fix_offsets(self) -> int:
        """Fix the offsets of all slots; returns the floats in all."""
        offset = 0
        for slot in self._slots:
            slot.offset = offset
            offset += slot.layout.floats(slot.channels)
        return max(16, offset)

    def place(self, number: int, channels: int) -> Place:
        """The place of slot `number` in memory, once `fix_offsets` has been called."""
        slot = self._slots[number]
        return Place(kept=self.kept, offset=slot.offset, layout=slot.layout, channels=channels)
