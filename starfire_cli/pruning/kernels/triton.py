"""CUDA kernels in Triton: a handful of launches for all layers of a call; only the capture of a CUDA graph
synchronises.

Layers that are pruned again and again have their table on the device; a call tells it what is due and replays one CUDA
graph, in which the programs of layers that are not due end at once. Checked to be equal to `torch` bit for bit under
Triton's interpreter on a CPU; docs/performance.md says what has run on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from starfire_cli.pruning.kernels import KERNELS, MaskJob, installed
from starfire_cli.pruning.kernels._patterns import counts_of
from starfire_cli.pruning.kernels.gpu.gradient_masking import GradientMasking
from starfire_cli.pruning.kernels.gpu.table import (
    BLOCK,
    FEW,
    KINDS,
    LISTED,
    NEURON,
    NINE,
    ROWS,
    WIDE,
    Due,
    Part,
    Tally,
    Tiled,
    build,
    tiles_of,
)
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.selection import Bools, Candidates, Floats, list_candidates
from starfire_cli.pruning.units import Budget, Cut, rank_units

_OPTIONS: dict[str, dict[str, int]] = {  # 4 warps for all others
    "channels": {"num_warps": 16},
    "pick": {"num_warps": 16, "maxnreg": 64},  # more would take a multiprocessor for itself
    "take": {"num_warps": 1},
    "weakest": {"num_warps": 1},
}
_KEYS = {2: torch.int32, 4: torch.int32, 8: torch.int64}  # what the keys of weights of so many bytes are kept in
_ALL = frozenset(KINDS)


@KERNELS.register("triton")
@dataclass(frozen=True, kw_only=True)
class TritonKernels:
    """All layers of a call at once, of any shape, strides and floating dtype.

    Args:
        graphs: replay what comes again and again as a CUDA graph.
    """

    graphs: bool = True

    @classmethod
    def unsupported_reason(cls, device: torch.device) -> str | None:
        if not installed("triton"):
            return "triton is not installed (on Linux, torch for CUDA brings it)"
        interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        if device.type == "cuda" or interpreted:
            return None
        return f"triton computes on CUDA, the weights are on {device.type}"

    def takes(self, layer: Layer, budget: Budget) -> bool:
        return counts_of(layer, budget) is not None

    def prune(self, jobs: Sequence[MaskJob]) -> Tensor:
        if not jobs:
            return torch.zeros(0, dtype=torch.int64)
        return TritonLayers(jobs, graphs=False).prune([job.budget for job in jobs])

    def prepare(self, jobs: Sequence[MaskJob]) -> TritonLayers:
        return TritonLayers(jobs, graphs=self.graphs)

    def mask_gradients(self, gradients: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        self._gradient_masking(gradients, masks)

    def list_candidates(self, score_N: Floats, among_N: Bools, low: float, high: float) -> Candidates:
        return list_candidates(score_N, among_N, low, high)

    def warmup_notice(self) -> str | None:
        return None  # not worth a line

    @cached_property
    def _gradient_masking(self) -> GradientMasking:
        return GradientMasking()


class TritonLayers:
    """`PreparedLayers` on a GPU. From the second call on graphs are captured, for which the device is waited for.

    There is one for each combination of what may be due. A call may be captured by others if the call before had the
    same budgets; RuntimeError otherwise. Their graph reads this object: it has to outlive the graph, and to be called
    with these budgets only.
    """

    _captures: dict[frozenset[str], torch.cuda.CUDAGraph]  # by what is due
    _compiled: bool  # all that a graph holds
    _told: list[int]  # what stands in `_due`

    def __init__(self, jobs: Sequence[MaskJob], *, graphs: bool) -> None:
        self._jobs = tuple(jobs)
        self._device = jobs[0].weight.device
        self._graphs = graphs and self._device.type == "cuda"
        self._counts = torch.zeros(len(jobs), dtype=torch.int64, device=self._device)
        self._known: list[Budget] = [job.budget for job in jobs]
        self._kernels, self._more = [0] * len(jobs), [0] * len(jobs)  # due of a channel, and how many more than before
        self._set_up()

    @torch.no_grad()
    def prune(self, budgets: Sequence[Budget | None]) -> Tensor:
        with torch.cuda.device(self._device if self._device.type == "cuda" else -1):  # where Triton launches
            capturing = self._device.type == "cuda" and torch.cuda.is_current_stream_capturing()
            needed = self._tell(budgets, capturing=capturing)
            if not self._graphs or capturing:
                self._launch(needed)
            elif not self._compiled:
                self._launch(_ALL)
                self._compiled = True
            else:
                if needed not in self._captures:
                    self._captures[needed] = self._captured(needed)
                self._captures[needed].replay()
        return self._counts

    def _set_up(self) -> None:
        self._captures, self._compiled, self._told = {}, False, []
        self._table = build(self._jobs, self._known)
        self._due = torch.zeros(len(self._table.rows), Due.WIDTH, dtype=torch.int64, device=self._device)

    def _tell(self, budgets: Sequence[Budget | None], *, capturing: bool) -> frozenset[str]:
        """Upload the due counts; returns those of `KINDS` that are due."""
        news = "what is captured has to have been called with the same budgets right before"
        try:
            told, needed = self._table.due(budgets, self._kernels, self._more)
        except LookupError:  # a first tile goes, or the like
            if capturing:
                raise RuntimeError(news) from None
            self._known = [new or old for new, old in zip(budgets, self._known, strict=True)]
            self._set_up()
            told, needed = self._table.due(budgets, self._kernels, self._more)
        if told != self._told:
            if capturing:  # a graph would read the host's memory again at each replay
                raise RuntimeError(news)
            # Only from pinned memory does a copy not wait.
            on_host = torch.empty(len(told), dtype=torch.int64, pin_memory=self._device.type == "cuda")
            on_host.numpy()[:] = told
            self._due.copy_(on_host.view_as(self._due), non_blocking=True)
            self._told = told
        return needed

    def _captured(self, needed: frozenset[str]) -> torch.cuda.CUDAGraph:
        """Capture the launches as a graph; linear layers, a chain of small launches, are a branch that goes first.

        All graphs use the same memory: nothing in it outlives a replay. It is kept by stream, so these are the same.
        """
        graph, pool = torch.cuda.CUDAGraph(), next((other.pool() for other in self._captures.values()), None)
        stream, beside = self._streams
        # Only this thread is held to the rules of capturing: loaders go on in theirs.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._launch(needed, beside)
        return graph

    @cached_property
    def _streams(self) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
        first, beside = (torch.cuda.Stream(self._device, priority) for priority in (0, -1))  # type: ignore[no-untyped-call]
        return first, beside

    def _launch(self, needed: frozenset[str], beside: torch.cuda.Stream | None = None) -> None:
        """Launch all that is `needed`, linear layers on the stream `beside` if there is one."""
        for size, part in self._table.parts.items():
            kept = self._begin(size, part)
            linear = "weights" in needed and part.lists > 0
            if linear:
                if beside is not None:
                    beside.wait_stream(torch.cuda.current_stream(self._device))
                with torch.cuda.stream(beside):
                    self._prune_linear(size, part, *kept, tiles="tiles" in needed)
            self._prune_convolutions(size, part, needed)
            if linear and beside is not None:
                torch.cuda.current_stream(self._device).wait_stream(beside)

    def _begin(self, size: int, part: Part) -> tuple[Tensor, Tensor]:
        """Zero the counters of the linear kernels, `tally` and `histograms`, where a layer is due."""
        from starfire_cli.pruning.kernels.gpu.device import begin

        rows, on = self._table.rows, part.programs["layers"]
        tally, histograms = self._empty(len(rows), Tally.WIDTH, dtype=torch.int64), self._empty(len(rows), size, 256)
        _launch(begin, on, rows, on, self._due, self._counts, tally, histograms, BYTES=size)
        return tally, histograms

    def _prune_convolutions(self, size: int, part: Part, needed: frozenset[str]) -> None:
        """Prune the convolutions whose weights have `size` bytes."""
        from starfire_cli.pruning.kernels.gpu import channels
        from starfire_cli.pruning.kernels.gpu import device as device
        from starfire_cli.pruning.kernels.gpu.weakest import weakest

        def launch(kernel: Any, name: str, *more: Tensor, **constants: int) -> None:
            self._on(part, kernel, name, *more, BYTES=size, **constants)

        if "inside" in needed:
            launch(device.scan, "windows", BLOCK=BLOCK)
            launch(device.nine, "nine", BLOCK=NINE)
            launch(device.inside, "inside", BLOCK=BLOCK)
        if "channels" in needed and part.chunks:
            lows = self._empty(part.chunks, FEW, WIDE, dtype=_KEYS[size])
            ats, dead = self._empty(part.chunks, FEW, WIDE), self._empty(part.chunks, 2, WIDE)
            left = self._empty(len(part.programs["channels"]))
            for name in ("fours", "ones"):
                fours = name == "fours"
                launch(weakest, name, lows, ats, dead, FEW=FEW, ROWS=ROWS, WIDE=WIDE, FOURS=fours)
            launch(channels.take, "channels", lows, ats, dead, left, FEW=FEW, DEPTH=ROWS, WIDE=WIDE)
            launch(channels.channels, "channels", left, HIGH=2 * ROWS, WIDE=WIDE)
        if "inside" in needed:
            launch(device.apply, "windows", BLOCK=BLOCK)

    def _prune_linear(self, size: int, part: Part, tally: Tensor, histograms: Tensor, *, tiles: bool) -> None:
        """Prune the linear layers whose weights have `size` bytes."""
        from starfire_cli.pruning.kernels.gpu import linear as linear
        from starfire_cli.pruning.kernels.gpu import listed as listed

        if tiles and part.tiled:
            self._take_tiles(part)
        block = {"BYTES": size, "BLOCK": BLOCK}
        guards = self._empty(part.neurons)
        lists = self._empty(part.lists, LISTED, dtype=_KEYS[size]), self._empty(part.lists, LISTED)
        found = (tally, guards, self._table.limits, *lists)
        self._on(part, listed.neurons, "neurons", *found, BYTES=size, BLOCK=NEURON, LISTED=LISTED)
        self._on(part, listed.pick, "lists", *found, BYTES=size, LISTED=LISTED)
        if "weights" in part.programs:  # of these nobody has anything to do where what is listed is enough
            table, on = self._table, part.programs["weights"]
            states, ties = self._empty(len(table.rows), size + 1, 2, dtype=torch.int64), self._empty(len(on))
            arguments = (table.rows, table.targets, on, self._due, tally, guards, histograms, states, ties)
            for phase in range(size + 1):
                _launch(linear.select, on, *arguments, phase, **block, TILES=False)
            self._on(part, linear.finish, "weights", tally, guards, table.limits, states, ties, **block)

    def _on(self, part: Part, kernel: Any, name: str, *more: Tensor, **constants: int) -> None:
        """Launch a kernel with these programs; nothing where there are none."""
        if name in part.programs:
            table, on = self._table, part.programs[name]
            _launch(kernel, on, table.rows, table.targets, on, self._due, self._counts, *more, **constants)

    def _empty(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _take_tiles(self, part: Part) -> None:
        """Mark all weights of the tiles that go."""
        from starfire_cli.pruning.kernels.gpu.linear import select

        rows, programs = self._table.rows, part.programs["tiles"]
        tally = torch.zeros(len(rows), Tally.WIDTH, dtype=torch.int64, device=self._device)
        scores: list[Tensor] = []
        for tiled in part.tiled:
            score_T, alive_T, guard_T = _tile_scores(self._jobs[tiled.job], tiled)
            tally[tiled.row, Tally.GUARDS] = guard_T.sum()
            tally[tiled.row, Tally.DEAD] = (~alive_T).sum()
            scores.append(torch.where(guard_T, torch.inf, torch.where(alive_T, score_T, -1.0)))
        keys = torch.cat([score_T.flatten() for score_T in scores]).view(torch.int64)  # -1.0 is below 0 here, too
        histograms = torch.zeros(len(rows), 8, 256, dtype=torch.int32, device=self._device)
        states = torch.empty(len(rows), 9, 2, dtype=torch.int64, device=self._device)
        ties = torch.empty(len(programs), dtype=torch.int32, device=self._device)
        for phase in range(10):
            arguments = (rows, self._table.targets, programs, self._due, tally, keys, histograms, states, ties, phase)
            _launch(select, programs, *arguments, BYTES=8, BLOCK=BLOCK, TILES=True)
        gone = torch.split(keys < 0, [score_T.numel() for score_T in scores])
        for tiled, score_T, gone_N in zip(part.tiled, scores, gone, strict=True):
            job, n = self._jobs[tiled.job], tiled.tile
            (O, I), is_due = job.layer.shape, self._due[tiled.row, Due.COUNT] > 0
            gone_OI = gone_N.view_as(score_T).repeat_interleave(n, 0).repeat_interleave(n, 1)[:O, :I]
            goes_OI = gone_OI & job.alive & job.weight.isfinite().all() & is_due
            job.alive.view(torch.uint8).masked_fill_(goes_OI, 2)


def options_of(kernel: str) -> dict[str, Any]:
    """The compile options of a kernel."""
    options = {"num_warps": 4, "enable_fp_fusion": False} | _OPTIONS.get(kernel, {})
    if torch.version.hip:  # AMD's compiler does not know it
        options.pop("maxnreg", None)
    return options


def _launch(kernel: Any, programs: Tensor, *arguments: Any, **constants: Any) -> None:
    if len(programs):  # The kernels compute with whole numbers only; but Triton 3.9 warns unless told about fusion.
        kernel[(len(programs),)](*arguments, **constants, **options_of(kernel.__name__))


def _tile_scores(job: MaskJob, tiled: Tiled) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of a linear layer's tiles, float64, those alive, and those that keep a neuron alive, (rows, columns).

    By the very operations of `units`: a sum in another order may round to another number.
    """
    score, alive, guard = rank_units(job.weight, job.alive, Cut("", "", 0, reduce="sum", keep="K", tile=tiled.tile))
    assert guard is not None
    score_T, alive_T, guard_T = (x.reshape(tiles_of(job.layer, tiled.tile)) for x in (score.double(), alive, guard))
    return score_T, alive_T, guard_T
