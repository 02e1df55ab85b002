"""Jobs: operations of a network that have been given loops, but no places in memory yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from starfire_cli.sparse import convolution
from starfire_cli.sparse.convolution import TILINGS, Kind, Place, Tiling, Work
from starfire_cli.sparse.emit import Code
from starfire_cli.sparse.export import odd_loops
from starfire_cli.sparse.export.activations import Activation
from starfire_cli.sparse.export.buffers import Buffer, Value
from starfire_cli.sparse.export.odd_loops import Combination
from starfire_cli.sparse.layout import FLOAT
from starfire_cli.sparse.linear import gathering
from starfire_cli.sparse.machine import Step
from starfire_cli.sparse.pool import LoopWeightsCache
from starfire_cli.sparse.weights import LiveWeights

RESULT = Buffer(name="result", channels=1, pixels=(1, 1))  # what the caller gets, in memory of the caller


class LoweringContext(Protocol):
    """The places of maps, and the way in which loops are made."""

    lanes: int
    threads: int
    cache: LoopWeightsCache

    def place(self, buffer: Buffer) -> Place:
        """The place of a map."""

    def way(self, job: Job, work: Work) -> tuple[Kind, Tiling]:
        """The loop of a convolution."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """One operation.

    Args:
        name: of the operation.
        writes: its map.
        reads: the maps it reads.
        steps: its steps, once all maps have places.
        work: of a convolution.
        half: room for the halves of the input's rows and columns.
    """

    name: str
    writes: Buffer
    reads: tuple[Buffer, ...]
    steps: Callable[[LoweringContext], list[Step]] = field(repr=False)
    work: Work | None = None
    half: Buffer | None = None


def convolving(name: str, work: Work, writes: Buffer, reads: Sequence[Buffer]) -> Job:
    """A convolution, pooling, mean or intake of an image."""
    half = None
    if work.halved:
        (H, W), halves = reads[0].pixels, len(work.halves())
        half = Buffer(name=name, channels=reads[0].channels * halves, pixels=(-(-H // 2), -(-W // 2)))

    def steps(context: LoweringContext) -> list[Step]:
        source, *others = (context.place(buffer) for buffer in reads or (writes,))
        kind: Kind = "taps"
        tiling = TILINGS[kind][context.lanes][0]
        if work.does in ("sum", "max"):  # of the others there is one loop
            kind, tiling = context.way(job, work)
        return convolution.steps(
            work,
            kind,
            tiling,
            source,
            context.place(writes),
            other=others[0] if others else None,
            half=None if half is None else context.place(half),
            threads=context.threads,
            lanes=context.lanes,
            cache=context.cache,
        )

    job = Job(name=name, writes=writes, reads=tuple(reads), steps=steps, work=work, half=half)
    return job


def pointing(
    name: str,
    writes: Buffer,
    source: Buffer,
    *,
    activation: Activation | None = None,
    combine: Combination | None = None,
    other: Buffer | None = None,
    affine: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None,
    first: int = 0,
) -> Job:
    """Each number of a map by itself; see `odd_loops.pointwise`.

    Args:
        name: of the operation.
        writes: the result.
        source: the map.
        activation: what is done last.
        combine: what is done with `other`.
        other: a map of the same shape, or of one number a channel.
        affine: what each channel is multiplied by, and what is added.
        first: the channel of `writes` that takes the first one.
    """

    def steps(context: LoweringContext) -> list[Step]:
        place, out = context.place(source), context.place(writes)
        out = replace(out, offset=out.offset + first * out.layout.plane)
        beside = None if other is None else context.place(other)
        each = other is not None and other.pixels != source.pixels
        code = odd_loops.pointwise(
            place.layout,
            activation=activation,
            combine=combine,
            other_plane=FLOAT * beside.layout.plane if each and beside is not None else None,
            affine=affine is not None,
        )
        values = {**place.fields("in"), **out.fields("out"), "mask": place.layout.mask().numpy()}
        if beside is not None:
            values |= beside.fields("other")
        if affine is not None:
            values |= {"weights": affine[0], "bias": affine[1]}
        return _shared(code, values, source.channels, context)

    reads = (source,) if other is None else (source, other)
    return Job(name=name, writes=writes, reads=reads, steps=steps)


def pooling(
    name: str,
    writes: Buffer,
    source: Buffer,
    windows: Sequence[npt.NDArray[np.int64]],
    shares: npt.NDArray[np.float32] | None,
) -> Job:
    """Pooling with any windows.

    Args:
        name: of the operation.
        writes: the result.
        source: the map.
        windows: for each output the pixels it sees, counted row by row.
        shares: what the sum of each window is multiplied by; None for the largest instead.
    """

    def steps(context: LoweringContext) -> list[Step]:
        place, out = context.place(source), context.place(writes)
        code = odd_loops.pooled(lanes=context.lanes, largest=shares is None, plane=FLOAT * place.layout.plane)
        W, out_W = source.pixels[1], writes.pixels[1]
        seen = np.concatenate(windows)
        o = np.arange(len(windows))
        values = {
            **place.fields("in"),
            **out.fields("out"),
            "out_plane": FLOAT * out.layout.plane,
            "blocks": len(windows),
            "segments": np.cumsum([0, *(len(window) for window in windows)]).astype(np.int32),
            "offsets": (FLOAT * (seen // W * place.layout.row + seen % W)).astype(np.int32),
            "starts_out": (FLOAT * (o // out_W * out.layout.row + o % out_W)).astype(np.int32),
            "weights": np.ones(1, np.float32) if shares is None else shares,
        }
        return _shared(code, values, source.channels, context)

    return Job(name=name, writes=writes, reads=(source,), steps=steps)


def norming(
    name: str,
    writes: Buffer,
    source: Buffer,
    scale: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
    eps: float,
) -> Job:
    """Layer normalisation over the channels of each pixel; see `odd_loops.normed`."""

    def steps(context: LoweringContext) -> list[Step]:
        place, out = context.place(source), context.place(writes)
        layout = place.layout
        code = odd_loops.normed(layout, channels=source.channels, eps=eps)
        mask = layout.mask().numpy()
        values = {**place.fields("in"), **out.fields("out"), "mask": mask, "weights": scale, "bias": shift}
        return _shared(code, values, layout.height * layout.vectors, context)

    return Job(name=name, writes=writes, reads=(source,), steps=steps)


def gathers(name: str, writes: Buffer, value: Value, live: LiveWeights) -> Job:
    """A linear layer."""

    def steps(context: LoweringContext) -> list[Step]:
        place = context.place(value.buffer)
        positions = value.positions(place.layout).astype(np.int32)
        places = {**place.fields("in"), **context.place(writes).fields("out")}
        step = gathering(live, positions, places, lanes=context.lanes)
        return [replace(step, grain=_grain(step.tasks, context.threads))]

    return Job(name=name, writes=writes, reads=(value.buffer,), steps=steps)


def moving(name: str, writes: Buffer, value: Value, first: int = 0) -> Job:
    """A copy of a value, in order; into what the caller gets where `writes` is RESULT.

    Args:
        name: of the operation.
        writes: the result.
        value: what is copied.
        first: the number of `writes` that takes the first one.
    """

    def steps(context: LoweringContext) -> list[Step]:
        place = context.place(value.buffer)
        starts = value.positions(place.layout)
        if writes is RESULT:
            ends, target = np.arange(len(starts)), {"out_region": 1, "out": 0}
        else:
            out = context.place(writes)
            ends, target = writes.positions(out.layout)[first : first + len(starts)], out.fields("out")
        values = {
            **place.fields("in"),
            **target,
            "starts_in": (FLOAT * starts).astype(np.int32),
            "starts_out": (FLOAT * ends).astype(np.int32),
        }
        return _shared(odd_loops.moved(lanes=context.lanes), values, len(starts), context)

    return Job(name=name, writes=writes, reads=(value.buffer,), steps=steps)


def _shared(code: Code, values: dict[str, object], tasks: int, context: LoweringContext) -> list[Step]:
    return [Step(code=code, values=values, tasks=tasks, grain=_grain(tasks, context.threads))]


def _grain(tasks: int, threads: int) -> int:
    return tasks if threads == 1 else max(1, tasks // (4 * threads))
