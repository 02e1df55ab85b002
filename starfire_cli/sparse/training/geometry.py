"""Tiles of a map, and where each position of a kernel reads for them.

Maps lie channel by channel with the images innermost, (C, H, W, N): a pixel is N floats in a row, whole vectors of
them. Nothing is padded: where a kernel looks beside the map, the code of that tile has no operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

Pair = tuple[int, int]
Reads = Callable[[int, int], int | None]  # (position in the kernel, position in the target) to that in the source


@dataclass(frozen=True, kw_only=True)
class ConvShape:
    """A convolution's sizes, rows before columns.

    Args:
        size: of its kernels.
        stride: in pixels.
        padding: likewise, on both sides.
        dilation: likewise.
        pixels: of the input map.
    """

    size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    pixels: Pair

    @property
    def outputs(self) -> Pair:
        """The size of the output map, in pixels."""
        sizes = zip(self.size, self.stride, self.padding, self.dilation, self.pixels, strict=True)
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for k, s, p, d, n in sizes)
        return rows, columns

    @property
    def is_flat(self) -> bool:
        """Whether each output pixel reads the one input pixel at its own place."""
        return self.size == self.stride == (1, 1) and self.padding == (0, 0)

    def forward_reads(self) -> tuple[Reads, Reads]:
        """For rows and columns: which input an output reads, through which position of the kernel."""

        def along(axis: int) -> Reads:
            stride, padding, dilation, n = (v[axis] for v in (self.stride, self.padding, self.dilation, self.pixels))

            def read(tap: int, target: int) -> int | None:
                source = target * stride - padding + tap * dilation
                return source if 0 <= source < n else None

            return read

        return along(0), along(1)

    def backward_reads(self) -> tuple[Reads, Reads]:
        """For rows and columns: which output an input went into, through which position of the kernel."""

        def along(axis: int) -> Reads:
            stride, padding, dilation, n = (v[axis] for v in (self.stride, self.padding, self.dilation, self.outputs))

            def read(tap: int, target: int) -> int | None:
                source, rest = divmod(target + padding - tap * dilation, stride)
                return source if rest == 0 and 0 <= source < n else None

            return read

        return along(0), along(1)


@dataclass(frozen=True, kw_only=True)
class TileSize:
    """Pixels of a tile, and vectors of images at each."""

    rows: int
    columns: int
    vectors: int


@dataclass(frozen=True, kw_only=True)
class TileKind:
    """Tiles for which the same code computes: they differ only in where they begin. Places are in bytes.

    Args:
        targets: of each vector of the tile, from where it begins in the target.
        sources: for each position of the kernel, where each vector reads from; None beside the map.
        starts: (target, source) of each tile.
    """

    targets: tuple[int, ...]
    sources: tuple[tuple[int | None, ...], ...]
    starts: list[Pair] = field(default_factory=list, compare=False)


@lru_cache(maxsize=1024)
def tile_kinds(shape: ConvShape, size: TileSize, images: int, lanes: int, *, backward: bool = False) -> list[TileKind]:
    """The tiles of a convolution's output, or of its input for `backward`, by kind.

    Args:
        shape: of the convolution.
        size: of a tile; those at the edges may be smaller.
        images: in a pixel, a multiple of `lanes`.
        lanes: floats in a vector.
        backward: whether the target is the input map and the source the output map.
    """
    if shape.is_flat:  # a row of vectors
        length = shape.pixels[0] * shape.pixels[1] * images // lanes
        shape = ConvShape(size=(1, 1), pixels=(1, length))
        size = TileSize(rows=1, columns=size.rows * size.columns * size.vectors, vectors=1)
        images = lanes
    target, source = (shape.pixels, shape.outputs) if backward else (shape.outputs, shape.pixels)
    reads = shape.backward_reads() if backward else shape.forward_reads()
    rows = _cuts(target[0], size.rows, shape.size[0], reads[0])
    columns = _cuts(target[1], size.columns, shape.size[1], reads[1])
    vectors = [(n, min(size.vectors, images // lanes - n)) for n in range(0, images // lanes, size.vectors)]
    found: dict[TileKind, TileKind] = {}
    for y, y_base, ys in rows:
        for x, x_base, xs in columns:
            for n, depth in vectors:
                targets, sources = _places(ys, xs, depth, target[1], source[1], images, lanes)
                kind = TileKind(targets=targets, sources=sources)
                start = ((y * target[1] + x) * images + n * lanes, (y_base * source[1] + x_base) * images + n * lanes)
                found.setdefault(kind, kind).starts.append((4 * start[0], 4 * start[1]))
    return list(found.values())


_Cut = tuple[int, int, tuple[tuple[int | None, ...], ...]]


def _cuts(length: int, size: int, taps: int, read: Reads) -> list[_Cut]:
    """Along one axis, for each tile: where it begins, a place in the source, and where it reads from there."""
    cuts: list[_Cut] = []
    for start in range(0, length, size):
        places = range(start, min(length, start + size))
        seen = [[read(tap, place) for place in places] for tap in range(taps)]
        base = next((s for row in seen for s in row if s is not None), 0)
        cuts.append((start, base, tuple(tuple(None if s is None else s - base for s in row) for row in seen)))
    return cuts


@lru_cache(maxsize=4096)
def _places(
    ys: tuple[tuple[int | None, ...], ...],
    xs: tuple[tuple[int | None, ...], ...],
    depth: int,
    target_row: int,
    source_row: int,
    images: int,
    lanes: int,
) -> tuple[tuple[int, ...], tuple[tuple[int | None, ...], ...]]:
    """Targets and sources of the tiles that read `ys` along rows and `xs` along columns, by position of the kernel."""
    inside = [(y, x, v) for y in range(len(ys[0])) for x in range(len(xs[0])) for v in range(depth)]
    targets = tuple(4 * ((y * target_row + x) * images + v * lanes) for y, x, v in inside)

    def source(r: int | None, s: int | None, v: int) -> int | None:
        return None if r is None or s is None else 4 * ((r * source_row + s) * images + v * lanes)

    sources = tuple(tuple(source(row[y], column[x], v) for y, x, v in inside) for row in ys for column in xs)
    return targets, sources
