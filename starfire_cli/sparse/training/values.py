"""Values between operations: as maps for the loops, as (N, C, H, W) for torch, whichever is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from starfire_cli.sparse.training.maps import from_map, to_map


@dataclass(kw_only=True)
class MapValue:
    """A value, or the gradient of one.

    Args:
        images: how many.
        held: that a map has room for.
        as_map: (C, H, W, held).
        plain: (N, ...) of torch.
        owned: whether nobody else holds its memory.
    """

    images: int
    held: int
    as_map: Tensor | None = None
    plain: Tensor | None = None
    owned: bool = False

    def map(self) -> Tensor:
        """As a map, converted at most once."""
        if self.as_map is None:
            assert self.plain is not None
            self.as_map, self.owned = to_map(self.plain.detach(), self.held), True
            self.plain = None
        return self.as_map

    def tensor(self) -> Tensor:
        """As (N, C, H, W), maybe in the map's memory."""
        if self.plain is not None:
            return self.plain
        assert self.as_map is not None
        return from_map(self.as_map, self.images)

    def added(self, other: MapValue) -> MapValue:
        """The sum, in this one's memory where that is its own."""
        if self.as_map is None and other.as_map is not None:
            return other.added(self)
        if self.as_map is not None:
            mine, theirs = self.as_map, other.map()
            total = mine.add_(theirs) if self.owned else mine + theirs
            return MapValue(images=self.images, held=self.held, as_map=total, owned=self.owned)
        return MapValue(images=self.images, held=self.held, plain=self.tensor() + other.tensor())
