"""Autotuning: runs all eligible implementations of each layer once or a few times and keeps the fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter

import torch

from starfire_cli.sparse import compiler, machine
from starfire_cli.sparse.convolution import TILINGS, Kind, Place, Tiling, Work, steps
from starfire_cli.sparse.layout import Layout
from starfire_cli.sparse.linear import SparseLinear
from starfire_cli.sparse.machine import Program
from starfire_cli.sparse.plan import Choice, How, Maps, dense_convolution
from starfire_cli.sparse.pool import LoopWeightsCache, zeros
from starfire_cli.sparse.tracing import Operation

REPEATS = 3
SPINNING = 3.0  # times as fast torch must do a small layer: its threads go on spinning, which ours then feel
BATCH = 4  # images that torch gets at a time where there are several


def choose(operations: Sequence[Operation], maps: Maps, *, alone: bool, in_loops: bool = True) -> list[Choice]:
    """Time the candidates for each operation and choose the fastest.

    Args:
        operations: of a network.
        maps: their layouts.
        alone: one image at a time, in all threads; else an image a thread.
        in_loops: whether loops may run anything at all.
    """
    if not in_loops:
        return [Choice(name=o.name, how="dense" if o.folded else "torch", seconds={}) for o in operations]
    found = []
    for operation in operations:
        seconds: dict[str, float] = {}
        tilings: dict[str, Tiling] = {}
        handicap = 1.0
        if operation.folded is not None and operation.folded.window is None:
            seconds = _linear(operation, alone)
            handicap = SPINNING if alone and machine.threads() > 1 else 1.0
        elif operation.in_torch:
            found.append(Choice(name=operation.name, how="dense", seconds={}))
            continue
        elif operation.folded is not None and operation.work is not None:
            for kind in _sensible(operation.work):
                seconds[kind], tilings[kind] = _in_loops(operation, operation.work, kind, maps, alone)
            seconds["dense"] = _dense(operation, maps, alone, min(seconds.values()))
        how = "taps" if operation.work else "torch"
        if seconds:
            how = min(seconds, key=lambda name: seconds[name] * (handicap if name == "dense" else 1.0))
        found.append(Choice(name=operation.name, how=_HOW[how], seconds=seconds, tiling=tilings.get(how)))
    hows = {operation.node: choice.how for operation, choice in zip(operations, found, strict=True)}
    for i, operation in enumerate(operations):  # an image becomes a map where a loop reads it
        readers = {hows[o.node] for o in operations if operation.node in o.inputs}
        if operation.work is not None and operation.work.does == "scale" and not {"taps", "kernels"} & readers:
            found[i] = Choice(name=operation.name, how="torch", seconds={})
    return found


_HOW: dict[str, How] = {"taps": "taps", "kernels": "kernels", "dense": "dense", "torch": "torch"}


def _sensible(work: Work) -> tuple[Kind, ...]:
    """`kernels` computes with whole kernels, and `taps` loads as much as it computes: where one of them must lose, the
    other alone is tried.
    """
    kinds = work.kinds()
    if len(kinds) == 1:
        return kinds
    R, S = work.window.size
    share = len(work.live.values) / max(1, work.live.kernels * R * S)  # of weights in live kernels that are live
    return ("kernels",) if share > 0.7 else ("taps",) if share < 0.2 else kinds


def _in_loops(operation: Operation, work: Work, kind: Kind, maps: Maps, alone: bool) -> tuple[float, Tiling]:
    """The seconds that the loop takes with the fastest of its tilings, and which that is."""
    source, target = (maps.layout(maps.pixels(node)) for node in (operation.inputs[0], operation.node))
    half = maps.layout(maps.halved(operation.inputs[0])) if work.halved else None
    return _timed(work, kind, (source, target, half), alone)


def fastest_loop(work: Work, source: Layout, target: Layout, half: Layout | None) -> tuple[Kind, Tiling]:
    """The loop and its tiling that run a convolution fastest in one thread.

    Args:
        work: the convolution.
        source: the layout of its input.
        target: of its output.
        half: of the halves of its input, where these are made.
    """
    found = {kind: _timed(work, kind, (source, target, half), alone=False) for kind in _sensible(work)}
    best = min(found, key=lambda kind: found[kind][0])
    return best, found[best][1]


def _timed(work: Work, kind: Kind, layouts: tuple[Layout, Layout, Layout | None], alone: bool) -> tuple[float, Tiling]:
    source, target, halved = layouts
    C, K = work.channels
    offset, places = 0, []
    for layout, channels in ((source, C), (target, K), (target, K)):
        places.append(Place(kept=False, offset=offset, layout=layout, channels=channels))
        offset += layout.floats(channels)
    half = None
    if halved is not None:
        half = Place(kept=False, offset=offset, layout=halved, channels=C)
        offset += halved.floats(C * len(work.halves()))
    threads = machine.threads() if alone else 1
    memory = zeros(1, offset)
    tried: dict[Tiling, float] = {}
    for tiling in TILINGS[kind][compiler.lanes()]:
        made = steps(
            work,
            kind,
            tiling,
            places[0],
            places[1],
            other=places[2],
            half=half,
            threads=threads,
            lanes=compiler.lanes(),
            cache=LoopWeightsCache(),
        )
        run = partial(Program(made).run_one, memory.data_ptr(), memory.data_ptr(), 0, threads)
        tried[tiling] = _fastest(run, rival=min(tried.values(), default=0.0))
    best = min(tried, key=lambda tiling: tried[tiling])
    return tried[best] if alone else tried[best] / machine.threads(), best


def _dense(operation: Operation, maps: Maps, alone: bool, rival: float) -> float:
    """Time torch, with conversion from and to the loops' layout; once only where it is far slower than `rival`."""
    assert operation.folded is not None
    images = 1 if alone else BATCH
    memory, values = [], []
    for node in (*operation.inputs, operation.node):
        layout, channels = maps.layout(maps.pixels(node)), maps.shapes[node][1]
        memory.append(torch.zeros(images, layout.floats(channels)))
        values.append(layout.view(memory[-1], 0, channels))
    weight = operation.folded.live.dense()
    *inputs, output = values
    return _fastest(lambda: output.copy_(dense_convolution(operation, weight, inputs)), rival=rival * images) / images


def _linear(operation: Operation, alone: bool) -> dict[str, float]:
    """Time a linear layer with cold caches, as its weights come from far away in a network."""
    assert operation.folded is not None
    live = operation.folded.live
    images = 1 if alone else BATCH
    values = torch.zeros(images, live.shape[1])
    weight, bias = live.dense()[:, :, 0, 0], torch.from_numpy(live.bias)
    sparse = SparseLinear(live, images)
    elsewhere = torch.zeros(16 << 20)
    return {
        "taps": _fastest(lambda: sparse(values), elsewhere.fill_) / images,
        "dense": _fastest(lambda: torch.nn.functional.linear(values, weight, bias), elsewhere.fill_) / images,
    }


def _fastest(run: Callable[[], object], before: Callable[[float], object] = float, rival: float = 0.0) -> float:
    best = float("inf")
    run()
    for _ in range(REPEATS):
        before(0.0)
        started = perf_counter()
        run()
        best = min(best, perf_counter() - started)
        if rival and best > 2 * rival:
            break
    return best
