"""The loops of the weights' gradient: for each live weight, an inner product of two maps.

A task is an output channel. `chunks` of the maps are gone through one after the other, so that they stay in a near
cache; what a chunk gives is added up in order, by one thread: the bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from starfire_cli.sparse.emit import Code, Variable
from starfire_cli.sparse.training.geometry import TileKind

SHARED_FIELDS = (
    "gradient", "source",  # addresses: of the output's gradient, of the input
    "gradient_plane", "source_plane",  # bytes from one channel to the next
    "channels",  # of the output
    "chunks",  # of tiles
    "at_once",  # channels of the input in a step
    "steps",  # blocks of the input's channels
    "segments",  # address: int32 (steps * channels * groups + 1), where the entries of each begin
    "entries",  # address: int32, the channel of the input
    "sums",  # address: float32, one for each entry, or R * S
)  # fmt: skip


def fields(kinds: int) -> tuple[str, ...]:
    """The arguments of a loop over tiles of so many kinds: of each their starts, and where each chunk's begin."""
    own = [f"{name}{i}" for i in range(kinds) for name in ("starts", "chunk")]
    return (*SHARED_FIELDS, *own)


def whole_kernels(kinds: Sequence[TileKind], *, lanes: int) -> Code:
    """The gradient of whole kernels: R * S sums stay in registers while a chunk goes by."""
    code = Code(fields(len(kinds)), lanes)
    f, vector = code.field, code.vector
    taps = len(kinds[0].sources)
    gradient, source, segments, entries, out = (
        code.pointer(f[n]) for n in ("gradient", "source", "segments", "entries", "sums")
    )
    sums = [code.variable(vector, "zeroinitializer") for _ in range(taps)]
    with code.loop(0, f["chunks"]) as chunk, code.loop("%begin", "%end") as o:
        left = code.at(gradient, code.mul(o, f["gradient_plane"]))
        with code.loop(code.offset_at(segments, o), code.offset_at(segments, code.add(o, 1))) as j:
            right = code.at(source, code.mul(code.offset_at(entries, j), f["source_plane"]))
            for total in sums:
                total.set("zeroinitializer")
            for number, kind in enumerate(kinds):
                starts, bounds = code.pointer(f[f"starts{number}"]), code.pointer(f[f"chunk{number}"])
                bound = code.offset_at(bounds, chunk), code.offset_at(bounds, code.add(chunk, 1))
                with code.loop(*bound) as tile:
                    place = code.mul(tile, 2)
                    y = code.in_register(code.at(left, code.offset_at(starts, place)))
                    x = code.in_register(code.at(right, code.offset_at(starts, code.add(place, 1))))
                    _products(code, kind, sums, y, x)
            _keep(code, sums, code.at(out, code.mul(j, 4 * taps)))
    return code


def _products(code: Code, kind: TileKind, sums: list[Variable], y: str, x: str) -> None:
    met: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for tap, places in enumerate(kind.sources):
        for number, place in enumerate(places):
            if place is not None:
                met[place].append((tap, number))
    used = sorted({number for uses in met.values() for _, number in uses})
    values = {number: code.load(code.vector, code.at(y, kind.targets[number])) for number in used}
    for place in sorted(met):
        value = code.load(code.vector, code.at(x, place))
        for tap, number in met[place]:
            sums[tap].set(code.call("fma", value, values[number], sums[tap].get()))


def single_weights(kinds: Sequence[TileKind], *, lanes: int) -> Code:
    """The gradient of single weights: a tile of the output's gradient stays in registers while weights go by."""
    code = Code(fields(len(kinds)), lanes)
    f, vector = code.field, code.vector
    taps = len(kinds[0].sources)
    gradient, source, segments, entries, out = (
        code.pointer(f[n]) for n in ("gradient", "source", "segments", "entries", "sums")
    )
    begin = code.variable("i64", "0")
    sums = [code.variable(vector, "zeroinitializer") for _ in range(4)]
    for number, kind in enumerate(kinds):
        starts, bounds = code.pointer(f[f"starts{number}"]), code.pointer(f[f"chunk{number}"])
        with code.loop(0, code.offset_at(bounds, f["chunks"])) as tile:
            place = code.mul(tile, 2)
            left = code.at(gradient, code.offset_at(starts, place))
            right = code.at(source, code.offset_at(starts, code.add(place, 1)))
            with code.loop(0, f["steps"]) as step, code.loop("%begin", "%end") as o:
                y = code.in_register(code.at(left, code.mul(o, f["gradient_plane"])))
                if taps == 1:
                    ahead = code.add(code.mul(code.add(step, 1), f["at_once"]), code.let(f"sub i64 {o}, %begin"))
                    near = code.at(right, code.mul(ahead, f["source_plane"]))
                    there = code.at(y, code.mul(f["gradient_plane"], 2))
                    for p in kind.targets:
                        code.prefetch(code.at(near, p))
                        code.prefetch(code.at(there, p))
                values = [code.load(vector, code.at(y, p)) for p in kind.targets]
                segment = code.mul(code.add(code.mul(step, f["channels"]), o), taps)
                begin.set(code.offset_at(segments, segment))
                for tap in range(taps):
                    until = code.offset_at(segments, code.add(segment, tap + 1))
                    places = [(p, v) for p, v in zip(kind.sources[tap], values, strict=True) if p is not None]
                    if places:
                        _row(code, f, begin, until, (entries, right, out), places, sums, four_at_once=taps == 1)
                    begin.set(until)
    return code


def _row(
    code: Code,
    f: dict[str, str],
    begin: Variable,
    until: str,
    pointers: tuple[str, str, str],
    places: list[tuple[int, str]],
    sums: list[Variable],
    *,
    four_at_once: bool,
) -> None:
    """The entries of one output channel and one place in the kernel."""
    entries, right, out = pointers

    def product(j: str, total: Variable) -> None:
        x = code.in_register(code.at(right, code.mul(code.offset_at(entries, j), f["source_plane"])))
        total.set("zeroinitializer")
        for place, value in places:
            total.set(code.call("fma", code.load(code.vector, code.at(x, place)), value, total.get()))

    first = begin.get()
    if not four_at_once:
        with code.loop(first, until) as j:
            product(j, sums[0])
            _keep(code, sums[:1], code.at(out, code.mul(j, 4)))
        return
    fours = code.let(f"sdiv i64 {code.let(f'sub i64 {until}, {first}')}, 4")
    with code.loop(0, fours) as four:
        j = code.add(first, code.mul(four, 4))
        for i, total in enumerate(sums):
            product(code.add(j, i), total)
        _keep(code, sums, code.at(out, code.mul(j, 4)))
    with code.loop(code.add(first, code.mul(fours, 4)), until) as j:
        product(j, sums[0])
        _keep(code, sums[:1], code.at(out, code.mul(j, 4)))  # in the same order: other weights change no bit of it


def _keep(code: Code, sums: Sequence[Variable], out: str) -> None:
    """Add the sums of the lanes of each vector to the floats at `out`."""
    for i in range(0, len(sums), 4):
        some = [total.get() for total in sums[i : i + 4]]
        four = _four(code, [*some, *["zeroinitializer"] * (4 - len(some))])
        for n in range(len(some)) if len(some) < 4 else ():
            place = code.at(out, 4 * (i + n))
            found = code.let(f"extractelement <4 x float> {four}, i32 {n}")
            code.store("float", code.let(f"fadd float {code.load('float', place)}, {found}"), place)
        if len(some) == 4:
            place = code.at(out, 4 * i)
            before = code.load("<4 x float>", place)
            code.store("<4 x float>", code.let(f"fadd <4 x float> {before}, {four}"), place)


def _four(code: Code, vectors: list[str]) -> str:
    """The sums of the lanes of four vectors, as one of four floats."""
    a, b, c, d = vectors
    lanes = code.lanes
    pair = [i for p in range(0, lanes, 2) for i in (p, lanes + p)]
    block = [i for p in range(0, lanes, 4) for i in (p, p + 1, lanes + p, lanes + p + 1)]
    left, right = (_merged(code, x, y, pair, 1) for x, y in ((a, b), (c, d)))
    found = _merged(code, left, right, block, 2)
    while lanes > 4:
        half = lanes // 2
        kind = f"<{lanes} x float>"
        low, high = (
            code.let(f"shufflevector {kind} {found}, {kind} poison, <{half} x i32> <{_indices(range(o, o + half))}>")
            for o in (0, half)
        )
        found, lanes = code.let(f"fadd <{half} x float> {low}, {high}"), half
    return found


def _merged(code: Code, a: str, b: str, places: list[int], apart: int) -> str:
    low, high = (
        code.let(f"shufflevector {code.vector} {a}, {code.vector} {b}, {code.bits} <{_indices(p)}>")
        for p in (places, [i + apart for i in places])
    )
    return code.let(f"fadd {code.vector} {low}, {high}")


def _indices(places: Sequence[int]) -> str:
    return ", ".join(f"i32 {i}" for i in places)
