"""The loop of a convolution's output and of the gradient of its input: live weights times tiles of the source.

A task is a tile of the target times a block of its channels. The tile's sums stay in registers while the live weights
of one channel go by; of the source some channels at a time are gone through, so that they stay in a near cache.
"""

from __future__ import annotations

from collections import defaultdict

from starfire_cli.sparse.emit import Code, Variable
from starfire_cli.sparse.training.geometry import TileKind

FIELDS = (
    "source", "target",  # addresses
    "source_plane", "target_plane",  # bytes from one channel to the next
    "starts",  # address: int32 pairs, bytes of each tile in target and source
    "channels",  # of the target
    "blocks",  # of these
    "per_block",  # channels in each
    "steps",  # blocks of the source's channels
    "segments",  # address: int32 (steps * channels * groups + 1), where the entries of each begin
    "entries",  # address: int32, the channel of the source
    "weights",  # address: float32, one for each entry, or R * S
    "at_once",  # channels of the source in a step
    "add",  # 1: to what is in the target already
)  # fmt: skip


def correlation(kind: TileKind, *, lanes: int, whole: bool) -> Code:
    """The loop over tiles of one kind.

    Args:
        kind: of the tiles.
        lanes: floats in a vector.
        whole: an entry is a whole kernel; else a single weight, and entries are grouped by their place in the kernel.
    """
    code = Code(FIELDS, lanes)
    f, vector = code.field, code.vector
    sums = [code.variable(vector, "zeroinitializer") for _ in kind.targets]
    source, target, starts, segments, entries, weights = (
        code.pointer(f[n]) for n in ("source", "target", "starts", "segments", "entries", "weights")
    )
    taps = list(range(len(kind.sources)))
    groups = [taps] if whole else [[tap] for tap in taps]
    begin = code.variable("i64", "0")
    with code.loop("%begin", "%end") as task:
        tile = code.let(f"sdiv i64 {task}, {f['blocks']}")
        first = code.mul(code.let(f"srem i64 {task}, {f['blocks']}"), f["per_block"])
        last = code.min_i64(code.add(first, f["per_block"]), f["channels"])
        place = code.offset_at(starts, code.mul(tile, 2))
        start = code.at(source, code.offset_at(starts, code.add(code.mul(tile, 2), 1)))
        with code.loop(0, f["steps"]) as step, code.loop(first, last) as k:
            out = code.in_register(code.at(target, code.add(place, code.mul(k, f["target_plane"]))))
            fresh = code.let(f"or i64 {step}, {f['add']}")
            is_fresh = code.equal(fresh, 0)
            if len(kind.sources) == 1:
                ahead = code.add(code.mul(code.add(step, 1), f["at_once"]), code.let(f"sub i64 {k}, {first}"))
                near = code.at(start, code.mul(ahead, f["source_plane"]))
                there = code.at(out, code.mul(f["target_plane"], 2))
                for p in kind.targets:
                    code.prefetch(code.at(near, p))
                    code.prefetch(code.at(there, p), written=True)
            with code.when(is_fresh):
                for total in sums:
                    total.set("zeroinitializer")
            with code.when(code.let(f"xor i1 {is_fresh}, true")):
                for total, p in zip(sums, kind.targets, strict=True):
                    total.set(code.load(vector, code.at(out, p)))
            segment = code.mul(code.add(code.mul(step, f["channels"]), k), len(groups))
            begin.set(code.offset_at(segments, segment))
            for number, group in enumerate(groups):
                until = code.offset_at(segments, code.add(segment, number + 1))
                if any(s is not None for tap in group for s in kind.sources[tap]):
                    with code.loop(begin.get(), until) as j:
                        channel = code.mul(code.offset_at(entries, j), f["source_plane"])
                        own = code.at(weights, code.mul(j, 4 * len(group)))
                        _add(code, kind, group, sums, code.in_register(code.at(start, channel)), own)
                begin.set(until)
            for total, p in zip(sums, kind.targets, strict=True):
                code.store(vector, total.get(), code.at(out, p))
    return code


def _add(code: Code, kind: TileKind, group: list[int], sums: list[Variable], source: str, weights: str) -> None:
    """One entry: each vector of the source is loaded once for all sums that it goes into."""
    met: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, tap in enumerate(group):
        for total, place in enumerate(kind.sources[tap]):
            if place is not None:
                met[place].append((number, total))
    used = {number for uses in met.values() for number, _ in uses}
    weight = {n: code.splat(code.load("float", code.at(weights, 4 * n))) for n in sorted(used)}
    for place in sorted(met):
        value = code.load(code.vector, code.at(source, place))
        for number, total in met[place]:
            sums[total].set(code.call("fma", value, weight[number], sums[total].get()))
