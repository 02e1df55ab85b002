"""The loops that run sparse networks, over maps as `layout.py` lays them out.

A task is a tile of output positions times a block of output channels. Its sums stay in registers while the live weights
of one output channel go by; of the input a few channels at a time are gone through by all output channels, so that they
stay in the core's nearest cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from starfire_cli.sparse.emit import Code, Variable

# Arguments of all loops, each an i64. Maps are told by the region of memory they lie in (0: what one image needs while
# it passes through, 1: what is kept for all images) and the byte there at which the first pixel of channel 0 is.
FIELDS = (
    "in_region", "in",
    "out_region", "out",
    "other_region", "other",  # what is added
    "in_plane",  # bytes from one channel to the next
    "out_plane",
    "starts_in",  # address: int32 bytes from the first pixel to where each tile starts, in the input
    "starts_out",  # likewise in the output
    "mask",  # address: int32 of one output plane's rows, all bits where a pixel is
    "channels",  # of the output
    "blocks",  # of output channels
    "per_block",  # output channels in each
    "steps",  # blocks of input channels
    "segments",  # address: int32 (steps * channels + 1), where the entries of each begin
    "offsets",  # address: int32, for each entry: bytes from a tile's start to its input
    "weights",  # address: float32, one for each entry, or R * S
    "bias",  # address: float32 (channels,)
    "high",  # the bits of a float
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finish:
    """The epilogue of an output: operations before it is written.

    Args:
        add: another map is added.
        low: nothing is below zero.
        high: nothing is above the argument of this name.
        mask: what lies beside the pixels stays zero.
    """

    add: bool = False
    low: bool = False
    high: bool = False
    mask: bool = True


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One tile of sums.

    Args:
        rows: of vectors; a vector holds one row of the output or a part of it, or several short ones.
        vectors: side by side.
        in_row: bytes from one row of vectors to the next in the input.
        out_row: likewise in the output.
        apart: columns of the input from one output to the next, 1 or 2.
    """

    rows: int
    vectors: int
    in_row: int
    out_row: int
    apart: int = 1

    def places_in(self, lanes: int) -> list[int]:
        """Bytes from the tile's start to where each vector begins in the input."""
        return [y * self.in_row + 4 * self.apart * lanes * v for y in range(self.rows) for v in range(self.vectors)]

    def places_out(self, lanes: int) -> list[int]:
        """Likewise in the output."""
        return [y * self.out_row + 4 * lanes * v for y in range(self.rows) for v in range(self.vectors)]


def taps(*, lanes: int, tile: Tile, finish: Finish) -> Code:
    """Any pattern: each live weight scales the tile of the input that it sees, which is added to the sums."""
    code = Code(FIELDS, lanes)
    places = tile.places_in(lanes)

    def entry(sums: list[Variable], j: str, start: str, offsets: str, weights: str) -> None:
        source = code.in_register(code.at(start, code.offset_at(offsets, j)))
        weight = code.splat(code.load("float", code.let(f"getelementptr float, ptr {weights}, i64 {j}")))
        for total, place in zip(sums, places, strict=True):
            total.set(code.call("fma", _seen(code, tile, source, place), weight, total.get()))

    return _tasks(code, tile, finish, entry)


def kernels(*, lanes: int, tile: Tile, size: int, row: int, finish: Finish) -> Code:
    """Whole kernels, size x size, stride 1: each vector of the input is loaded once for all sums that it goes into.

    Args:
        lanes: floats in a vector.
        tile: of sums.
        size: of a kernel.
        row: bytes from one row of the input to the next.
        finish: what follows.
    """
    code = Code(FIELDS, lanes)
    met: dict[int, list[tuple[int, int]]] = defaultdict(list)  # by place in the input: the sums, and rows of the kernel
    for number, place in enumerate(tile.places_in(lanes)):
        for dy in range(size):
            met[place + dy * row].append((number, dy))

    def entry(sums: list[Variable], j: str, start: str, offsets: str, weights: str) -> None:
        source = code.in_register(code.at(start, code.offset_at(offsets, j)))
        own = code.at(weights, code.mul(j, 4 * size * size))
        for dx in range(size):
            column = [code.splat(code.load("float", code.at(own, 4 * (size * dy + dx)))) for dy in range(size)]
            for place in sorted(met):
                value = code.load(code.vector, code.at(source, place + 4 * dx))
                for number, dy in met[place]:
                    sums[number].set(code.call("fma", value, column[dy], sums[number].get()))

    return _tasks(code, tile, finish, entry)


def maxima(*, lanes: int, tile: Tile, finish: Finish) -> Code:
    """Pooling of what is nowhere below zero: the sums start at the bias, zero, and grow to the largest entry."""
    code = Code(FIELDS, lanes)
    places = tile.places_in(lanes)

    def entry(sums: list[Variable], j: str, start: str, offsets: str, _: str) -> None:
        source = code.at(start, code.offset_at(offsets, j))
        for total, place in zip(sums, places, strict=True):
            total.set(code.call("maximum", _seen(code, tile, source, place), total.get()))

    return _tasks(code, tile, finish, entry)


def halves(*, lanes: int, in_row: int, out_row: int, rows: int, vectors: int) -> Code:
    """Every other column of every other row, from where `offsets` says: a task is one such map of one channel.

    Args:
        lanes: floats in a vector.
        in_row: bytes from one row to the next in the input.
        out_row: likewise in the output.
        rows: of the output.
        vectors: likewise; what lies beside the pixels is masked.
    """
    code = Code(FIELDS, lanes)
    f = code.field
    source, target = code.region("in"), code.region("out")
    offsets, mask = code.pointer(f["offsets"]), code.pointer(f["mask"])
    with code.loop("%begin", "%end") as task:
        start = code.at(source, code.offset_at(offsets, task))
        plane = code.at(target, code.mul(task, f["out_plane"]))
        with code.loop(0, rows) as y:
            row, out = code.at(start, code.mul(y, 2 * in_row)), code.mul(y, out_row)
            for v in range(vectors):
                place = 4 * lanes * v
                left = code.load(code.vector, code.at(row, 2 * place))
                right = code.load(code.vector, code.at(row, 2 * place + 4 * lanes))
                picked = code.masked(code.even(left, right), code.load(code.bits, code.at(code.at(mask, out), place)))
                code.store(code.vector, picked, code.at(code.at(plane, out), place))
    return code


def _seen(code: Code, tile: Tile, source: str, place: int) -> str:
    """The inputs of a vector of outputs."""
    first = code.load(code.vector, code.at(source, place))
    return (
        first if tile.apart == 1 else code.even(first, code.load(code.vector, code.at(source, place + 4 * code.lanes)))
    )


Entry = Callable[[list[Variable], str, str, str, str], None]


def _tasks(code: Code, tile: Tile, finish: Finish, entry: Entry) -> Code:
    """Every task from `begin` to `end`: its tile, its output channels, its steps over the input."""
    f, vector = code.field, code.vector
    places = tile.places_out(code.lanes)
    sums = [code.variable(vector, "zeroinitializer") for _ in places]
    source, target, other = code.region("in"), code.region("out"), code.region("other")
    names = ("starts_in", "starts_out", "mask", "segments", "offsets", "weights", "bias")
    starts_in, starts_out, mask, segments, offsets, weights, bias = (code.pointer(f[name]) for name in names)
    last = code.add(f["steps"], -1)
    with ExitStack() as task_loop:
        task = task_loop.enter_context(code.loop("%begin", "%end"))
        number = code.let(f"sdiv i64 {task}, {f['blocks']}")
        first = code.mul(code.let(f"srem i64 {task}, {f['blocks']}"), f["per_block"])
        end = code.min_i64(code.add(first, f["per_block"]), f["channels"])
        start = code.at(source, code.offset_at(starts_in, number))
        place = code.offset_at(starts_out, number)
        step = task_loop.enter_context(code.loop(0, f["steps"]))
        is_first, is_last = code.equal(step, 0), code.equal(step, last)
        k = task_loop.enter_context(code.loop(first, end))
        plane = code.add(place, code.mul(k, f["out_plane"]))
        out = code.at(target, plane)
        with code.when(is_first):
            value = code.splat(code.load("float", code.let(f"getelementptr float, ptr {bias}, i64 {k}")))
            for total in sums:
                total.set(value)
        with code.when(code.let(f"xor i1 {is_first}, true")):
            for total, p in zip(sums, places, strict=True):
                total.set(code.load(vector, code.at(out, p)))
        segment = code.add(code.mul(step, f["channels"]), k)
        with code.loop(code.offset_at(segments, segment), code.offset_at(segments, code.add(segment, 1))) as j:
            entry(sums, j, start, offsets, weights)
        with code.when(is_last):
            _finish(code, finish, sums, places, code.at(other, plane), code.at(mask, place))
        for total, p in zip(sums, places, strict=True):
            code.store(vector, total.get(), code.at(out, p))
    return code


def _finish(code: Code, finish: Finish, sums: list[Variable], places: list[int], other: str, mask: str) -> None:
    high = ""
    if finish.high:
        bits = code.let(f"trunc i64 {code.field['high']} to i32")
        high = code.splat(code.let(f"bitcast i32 {bits} to float"))
    for total, p in zip(sums, places, strict=True):
        value = total.get()
        if finish.add:
            value = code.let(f"fadd {code.vector} {value}, {code.load(code.vector, code.at(other, p))}")
        if finish.low:
            value = code.relu(value)
        if finish.high:
            value = code.minimum(value, high)
        if finish.mask:
            value = code.masked(value, code.load(code.bits, code.at(mask, p)))
        total.set(value)


def scaled(*, lanes: int, width: int, rows: int, out_row: int) -> Code:
    """The pixels of an image from outside, rows without gaps: times `weights`, plus `bias`. A task is a channel.

    Args:
        lanes: floats in a vector.
        width: of the image, in pixels.
        rows: likewise.
        out_row: bytes from one row to the next in the output.
    """
    code = Code(FIELDS, lanes)
    f = code.field
    target, weights, bias = code.region("out"), code.pointer(f["weights"]), code.pointer(f["bias"])
    with code.loop("%begin", "%end") as c:
        source = code.at("%image", code.mul(c, 4 * width * rows))
        plane = code.at(target, code.mul(c, f["out_plane"]))
        scale, shift = (
            code.splat(code.load("float", code.let(f"getelementptr float, ptr {array}, i64 {c}")))
            for array in (weights, bias)
        )
        with code.loop(0, rows) as y:
            row, out = code.at(source, code.mul(y, 4 * width)), code.at(plane, code.mul(y, out_row))
            for x in range(0, width, lanes):
                left = min(lanes, width - x)
                value = code.call("fma", code.load_first(left, code.at(row, 4 * x)), scale, shift)
                code.store_first(left, value, code.at(out, 4 * x))
    return code


def means(*, lanes: int, rows: int, vectors: int, in_row: int, pixels: int) -> Code:
    """The mean of each channel, of `pixels` pixels; what lies beside them is zero. A task is a channel."""
    code = Code(FIELDS, lanes)
    f, vector = code.field, code.vector
    source, target = code.region("in"), code.region("out")
    total = code.variable(vector, "zeroinitializer")
    with code.loop("%begin", "%end") as c:
        plane = code.at(source, code.mul(c, f["in_plane"]))
        total.set("zeroinitializer")
        with code.loop(0, rows) as y:
            row = code.at(plane, code.mul(y, in_row))
            for v in range(vectors):
                value = code.load(vector, code.at(row, 4 * lanes * v))
                total.set(code.let(f"fadd {vector} {total.get()}, {value}"))
        found = code.sum(total.get(), "0.0")
        mean = code.let(f"fdiv float {found}, {float(pixels):e}")
        code.store("float", mean, code.at(target, code.mul(c, f["out_plane"])))
    return code


def gathered(*, lanes: int) -> Code:
    """A linear layer for one image: a task is one output, its inputs are picked up from where they lie.

    Of the arguments `segments` (in vectors), `offsets` (inputs, int32), `weights` and `bias` count; entries come in
    whole vectors.
    """
    code = Code(FIELDS, lanes)
    f, vector = code.field, code.vector
    source, target = code.region("in"), code.region("out")
    segments, offsets, weights, bias = (code.pointer(f[n]) for n in ("segments", "offsets", "weights", "bias"))
    total = code.variable(vector, "zeroinitializer")
    with code.loop("%begin", "%end") as o:
        total.set("zeroinitializer")
        with code.loop(code.offset_at(segments, o), code.offset_at(segments, code.add(o, 1))) as j:
            bytes_in = code.mul(j, 4 * lanes)
            where = code.load(code.bits, code.at(offsets, bytes_in))
            found = code.gather(source, where)
            total.set(code.call("fma", found, code.load(vector, code.at(weights, bytes_in)), total.get()))
        start = code.load("float", code.let(f"getelementptr float, ptr {bias}, i64 {o}"))
        value = code.sum(total.get(), start)
        code.store("float", value, code.let(f"getelementptr float, ptr {target}, i64 {o}"))
    return code
