"""Lowers one convolution, pooling or image intake to steps of a program."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from starfire_cli.sparse import loops
from starfire_cli.sparse.emit import Code
from starfire_cli.sparse.layout import FLOAT, Layout, Tiles, cut
from starfire_cli.sparse.loops import Finish, Tile
from starfire_cli.sparse.machine import Step
from starfire_cli.sparse.pool import LoopWeightsCache
from starfire_cli.sparse.weights import LiveWeights, order_kernels, order_taps

Kind = Literal["taps", "kernels"]
_WORTH = 40_000  # multiply-accumulates that are worth the handing out of a task


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The cut of a loop's work.

    Args:
        sums: vectors of them at most that are held in registers.
        near: bytes of input that are gone through by all output channels before the next; None for all.
    """

    sums: int
    near: int | None


# Fewer sums leave room in a core's nearest cache for more input channels, which are then added up in one go.
_WHOLE = Tiling(sums=14, near=None)
TILINGS: dict[Kind, dict[int, tuple[Tiling, ...]]] = {
    "taps": {
        4: (Tiling(sums=14, near=22 << 10), Tiling(sums=8, near=24 << 10), _WHOLE),
        8: (Tiling(sums=14, near=22 << 10), Tiling(sums=8, near=24 << 10), _WHOLE),
        16: (Tiling(sums=8, near=32 << 10), Tiling(sums=14, near=40 << 10), _WHOLE),
    },
    "kernels": {  # which also hold a column of weights
        4: (Tiling(sums=7, near=16 << 10),),
        8: (Tiling(sums=7, near=16 << 10),),
        16: (Tiling(sums=14, near=32 << 10), Tiling(sums=14, near=16 << 10)),
    },
}


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """The window of a convolution or pooling.

    Args:
        size: of the kernel, (R, S).
        stride: 1 or 2.
        padding: rows and columns of zeros around the image.
        dilation: of the kernel.
    """

    size: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def reach(self, axis: int, tap: Any) -> Any:
        """The offset in rows (axis 0) or columns from an output's first pixel to what `tap` reads, in the input or its
        halves.
        """
        return (tap * self.dilation[axis] - self.padding[axis]) // self.stride

    def half(self, axis: int, tap: Any) -> Any:
        """The half of the rows or columns that `tap` reads: 0 for even ones, 1 for odd ones."""
        return (tap * self.dilation[axis] - self.padding[axis]) % self.stride

    def reach_in_place(self, axis: int, tap: Any) -> Any:
        """Likewise in the input itself, of which every `stride`-th row and column is read."""
        return tap * self.dilation[axis] - self.padding[axis]

    def room(self, axis: int, pixels: int, out: int) -> int:
        """The zeros needed beyond `pixels` on either side for `out` outputs, in the input or its halves."""
        first, last = int(self.reach(axis, 0)), int(self.reach(axis, self.size[axis] - 1))
        return max(0, -first, last + out - pixels)

    def room_in_place(self, axis: int, pixels: int, out: int) -> int:
        """The zeros needed around the input itself."""
        last = int(self.reach_in_place(axis, self.size[axis] - 1))
        return max(0, self.padding[axis], last + self.stride * (out - 1) + 1 - pixels)


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a map in memory.

    Args:
        kept: whether it is among those kept for all images.
        offset: floats from the beginning of that memory.
        layout: of the map.
        channels: how many.
    """

    kept: bool
    offset: int
    layout: Layout
    channels: int

    def fields(self, name: str) -> dict[str, int]:
        """The loop arguments that describe the place."""
        return {f"{name}_region": int(self.kept), name: FLOAT * (self.offset + self.layout.start)}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One convolution, one pooling or the intake of an image.

    Args:
        window: what it looks at.
        live: its weights; for `max` and `mean` only shapes count, for `scale` there is one a channel.
        finish: what follows.
        high: see `Finish`.
        does: `sum` is convolution, `mean` is over whole maps, `scale` makes a map of the pixels of an image.
    """

    window: SlidingWindow
    live: LiveWeights
    finish: Finish
    high: float = 0.0
    does: Literal["sum", "max", "mean", "scale"] = "sum"

    @property
    def channels(self) -> tuple[int, int]:
        """The numbers of input and output channels."""
        return self.live.shape[1] * self.live.groups, self.live.shape[0]

    @property
    def in_place(self) -> bool:
        """Whether stride 2 is done while the input is read: where an input goes into one output alone (depthwise
        convolutions, pooling), to sort its pixels into halves first would not pay.
        """
        return self.window.stride == 2 and self.live.shape[1] == 1 and self.live.shape[0] == self.live.groups

    @property
    def halved(self) -> bool:
        """Whether the input's rows and columns are sorted into halves before."""
        return self.window.stride == 2 and not self.in_place

    def halves(self) -> list[tuple[int, int]]:
        """For stride 2, the halves of rows and columns that are read."""
        window = self.window
        rows = sorted({window.half(0, y) for y in range(window.size[0])})
        return [(y, x) for y in rows for x in sorted({window.half(1, x) for x in range(window.size[1])})]

    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of loop that can run it."""
        R, S = self.window.size
        whole = (
            R == S and R in (2, 3) and self.window.stride == 1 and self.window.dilation == (1, 1) and self.does == "sum"
        )
        return ("kernels", "taps") if whole else ("taps",)


def steps(
    work: Work,
    kind: Kind,
    tiling: Tiling,
    source: Place,
    target: Place,
    *,
    other: Place | None,
    half: Place | None,
    threads: int,
    lanes: int,
    cache: LoopWeightsCache,
) -> list[Step]:
    """The steps of `work`.

    Args:
        work: what is done.
        kind: which loop does it.
        tiling: how.
        source: the input.
        target: the output, which is neither of the others.
        other: what is added.
        half: room for the halves of the input's rows and columns, for stride 2.
        threads: that share one image; 1 where each has its own.
        lanes: floats in the widest vector.
        cache: weights ordered for other programs; those for this one are added.
    """
    if work.does in ("scale", "mean"):
        return [_plainly(work, source, target, threads)]
    found = []
    reach, seen = _reaching(work, source.layout), source
    if half is not None:
        found.append(_halving(work, source, half, threads))
        reach, seen = _reaching_halves(work, half.layout), half
    out = target.layout
    apart = work.window.stride if work.in_place else 1  # rows and columns of what is read
    together = out.rows_in_vector(lanes) if seen.layout.row == out.row and apart == 1 else 1  # rows in a vector
    lanes = lanes if together > 1 else out.lanes
    finish = Finish(
        add=work.finish.add,
        low=work.finish.low,
        high=work.finish.high,
        mask=bool(out.width % out.lanes) or together > 1,
    )
    R, S = work.window.size
    most, wide = tiling.sums, 1 if kind == "kernels" else tiling.sums
    tall = -(-out.height // together)
    share = -(-tall // threads)  # rows for each thread: what it has written it then reads itself
    parts = cut(tall, out.vectors, most=most, most_rows=min(most, share if share > 4 else tall), most_vectors=wide)
    largest = max(parts, key=lambda part: part.rows * part.vectors)
    in_cache = (largest.rows + R - 1) * (largest.vectors * lanes * FLOAT + (64 if S > 1 else 0))
    C = work.channels[0]
    at_once = C if tiling.near is None else max(8, tiling.near // in_cache)
    at_once = C if 3 * at_once >= 2 * C else at_once
    order = order_kernels if kind == "kernels" else order_taps
    key = kind, seen.layout, work.window, at_once
    entries = cache.get(work.live, key, lambda: order(work.live, reach, at_once))
    mask = out.mask().numpy()
    shared: dict[str, Any] = {
        **seen.fields("in"),
        **target.fields("out"),
        **(other.fields("other") if other else {}),
        "out_plane": FLOAT * out.plane,
        "mask": mask,
        "channels": work.channels[1],
        "steps": entries.steps,
        "segments": entries.segments,
        "offsets": entries.offsets,
        "weights": entries.weights,
        "bias": work.live.bias,
        "high": struct.unpack("<i", struct.pack("<f", work.high))[0],
    }
    macs = max(1, len(entries.weights)) * lanes
    for part in parts:
        in_row, out_row = FLOAT * together * apart * seen.layout.row, FLOAT * together * out.row
        tile = Tile(rows=part.rows, vectors=part.vectors, in_row=in_row, out_row=out_row, apart=apart)
        code = _code(work, kind, lanes, tile, FLOAT * seen.layout.row, finish)
        tiles = len(part.places)
        K = work.channels[1]
        blocks = 1 if threads == 1 else min(-(-6 * threads // tiles), -(-K // 8))
        per_block = -(-K // blocks)
        blocks = -(-K // per_block)
        tasks = tiles * blocks
        each = max(1, macs * part.rows * part.vectors // blocks)
        grain = tasks if threads == 1 else max(1, min(_WORTH // each, tasks // (2 * threads)))
        own = {
            "starts_in": _starts(part, in_row, apart * lanes),
            "starts_out": _starts(part, out_row, lanes),
            "blocks": blocks,
            "per_block": per_block,
        }
        found.append(Step(code=code, values=shared | own, tasks=tasks, grain=grain))
    return found


def _code(work: Work, kind: Kind, lanes: int, tile: Tile, row: int, finish: Finish) -> Code:
    if work.does == "max":
        return loops.maxima(lanes=lanes, tile=tile, finish=finish)
    if kind == "kernels":
        return loops.kernels(lanes=lanes, tile=tile, size=work.window.size[0], row=row, finish=finish)
    return loops.taps(lanes=lanes, tile=tile, finish=finish)


def _reaching(work: Work, layout: Layout) -> Callable[[Any, Any, Any], Any]:
    reach = work.window.reach_in_place if work.in_place else work.window.reach
    return lambda c, y, x: FLOAT * (c * layout.plane + reach(0, y) * layout.row + reach(1, x))


def _reaching_halves(work: Work, layout: Layout) -> Callable[[Any, Any, Any], Any]:
    halves, window = work.halves(), work.window
    number = np.zeros((2, 2), np.int64)
    for i, half in enumerate(halves):
        number[half] = i

    def reach(c: Any, y: Any, x: Any) -> Any:
        plane = c * len(halves) + number[window.half(0, y), window.half(1, x)]
        return FLOAT * (plane * layout.plane + window.reach(0, y) * layout.row + window.reach(1, x))

    return reach


def _halving(work: Work, source: Place, half: Place, threads: int) -> Step:
    halves, rows = work.halves(), source.layout.row
    c = np.arange(source.channels)[:, None] * source.layout.plane
    offsets = FLOAT * (c + np.array([y * rows + x for y, x in halves]))
    layout = half.layout
    code = loops.halves(
        lanes=layout.lanes,
        in_row=FLOAT * rows,
        out_row=FLOAT * layout.row,
        rows=layout.height,
        vectors=layout.vectors,
    )
    values = {
        **source.fields("in"),
        **half.fields("out"),
        "out_plane": FLOAT * layout.plane,
        "offsets": np.ascontiguousarray(offsets.reshape(-1), np.int32),
        "mask": layout.mask().numpy(),
    }
    tasks = source.channels * len(halves)
    grain = tasks if threads == 1 else max(1, tasks // (4 * threads))
    return Step(code=code, values=values, tasks=tasks, grain=grain)


def _plainly(work: Work, source: Place, target: Place, threads: int) -> Step:
    out, channels = target.layout, target.channels
    values: dict[str, Any] = {**target.fields("out"), "out_plane": FLOAT * out.plane}
    if work.does == "scale":
        code = loops.scaled(lanes=out.lanes, width=out.width, rows=out.height, out_row=FLOAT * out.row)
        values |= {"weights": work.live.values, "bias": work.live.bias}
    else:
        seen = source.layout
        code = loops.means(
            lanes=seen.lanes,
            rows=seen.height,
            vectors=seen.vectors,
            in_row=FLOAT * seen.row,
            pixels=seen.height * seen.width,
        )
        values |= {**source.fields("in"), "in_plane": FLOAT * seen.plane}
    grain = channels if threads == 1 else max(1, channels // (4 * threads))
    return Step(code=code, values=values, tasks=channels, grain=grain)


def _starts(part: Tiles, row: int, lanes: int) -> Any:
    return np.array([y * row + FLOAT * lanes * v for y, v in part.places], np.int32)
