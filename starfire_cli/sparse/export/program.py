"""Jobs with places in memory: the program that a network becomes for one set of instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starfire_cli.sparse.convolution import TILINGS, Kind, Place, Tiling, Work
from starfire_cli.sparse.export.buffers import Buffer
from starfire_cli.sparse.export.jobs import RESULT, Job
from starfire_cli.sparse.export.lowering import Lowered
from starfire_cli.sparse.export.targets import Level
from starfire_cli.sparse.layout import FLOAT, Layout
from starfire_cli.sparse.machine import Step
from starfire_cli.sparse.memory import Slots
from starfire_cli.sparse.pool import LoopWeightsCache

Way = Callable[[Work, Layout, Layout, Layout | None], tuple[Kind, Tiling]]
"""(what is done, the layouts of input, output and halves of the input) to the loop that does it."""


@dataclass(frozen=True, kw_only=True)
class LevelProgram:
    """The steps for one set of instructions.

    Args:
        level: the instructions.
        steps: in order.
        memory: bytes for one image on its way.
    """

    level: Level
    steps: tuple[Step, ...]
    memory: int


class _Places:
    """The places of all maps; a `jobs.LoweringContext`."""

    def __init__(self, lowered: Lowered, way: Way, *, lanes: int, threads: int, cache: LoopWeightsCache) -> None:
        self.lanes, self.threads, self.cache = lanes, threads, cache
        self._way = way
        self._slots, self._number = Slots(kept=False), dict[Buffer, int]()
        maps = lowered.maps
        left: dict[Buffer, int] = {}
        for job in lowered.jobs:
            for buffer in job.reads:
                left[buffer] = left.get(buffer, 0) + 1
        for job in lowered.jobs:
            for buffer in filter(None, (job.writes, job.half)):
                if buffer is not RESULT and buffer not in self._number:
                    self._number[buffer] = self._slots.take(maps.layout(buffer.pixels), buffer.channels)
            if job.half is not None:
                self._slots.release(self._number[job.half])
            for buffer in job.reads:
                left[buffer] -= 1
                if not left[buffer]:
                    self._slots.release(self._number[buffer])
        self.floats = self._slots.fix_offsets()

    def place(self, buffer: Buffer) -> Place:
        return self._slots.place(self._number[buffer], buffer.channels)

    def way(self, job: Job, work: Work) -> tuple[Kind, Tiling]:
        reads, half = job.reads or (job.writes,), job.half
        source, target = (self.place(buffer).layout for buffer in (reads[0], job.writes))
        return self._way(work, source, target, None if half is None else self.place(half).layout)


def program(
    lowered: Lowered, level: Level, *, threads: int, cache: LoopWeightsCache, way: Way | None = None
) -> LevelProgram:
    """The program of a network.

    Args:
        lowered: the network, for as many lanes as `level` has.
        level: the instructions.
        threads: among which the work on one image is shared out.
        cache: weights in the order of loops, which programs may share.
        way: the loop of each convolution; by rule where none is given.
    """
    assert lowered.maps.lanes == level.lanes, "the maps are laid out for other vectors"
    places = _Places(
        lowered, way or (lambda work, *_: by_rule(work, level)), lanes=level.lanes, threads=threads, cache=cache
    )
    steps = [step for job in lowered.jobs for step in job.steps(places)]
    return LevelProgram(level=level, steps=tuple(steps), memory=FLOAT * places.floats)


def by_rule(work: Work, level: Level) -> tuple[Kind, Tiling]:
    """The loop for a convolution where nothing can be measured: whole kernels where half of their weights are live."""
    R, S = work.window.size
    whole = len(work.live.values) > 0.5 * work.live.kernels * R * S
    kind: Kind = "kernels" if "kernels" in work.kinds() and whole else "taps"
    tiling = TILINGS[kind][level.lanes][0]
    return kind, Tiling(sums=min(tiling.sums, level.sums), near=tiling.near)
