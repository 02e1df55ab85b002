"""CUDA: Triton kernels, in a handful of launches for all layers of a call, and nothing that waits for the device.

Checked to be equal to `torch` bit for bit under Triton's interpreter on a CPU, and compiled on an H200 (Triton 3.6),
where a CUDA graph captures them too; docs/performance.md says how long they take there.

A call may be captured once a call with the same tensors and budgets has been made: then its table is on the device.
The graph reads that table, so the object has to outlive it, and see no more than `_TABLES` other sets of jobs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from starfire_cli.pruning.budget import LinearBudget
from starfire_cli.pruning.kernels import KERNELS, Job, installed
from starfire_cli.pruning.kernels._triton_table import BLOCK, Part, Table, build, channels_held, identity, places
from starfire_cli.pruning.linear._rules import _strongest, tiles_of

_TABLES = 8  # are kept


@KERNELS.register("triton")
@dataclass(frozen=True, kw_only=True)
class TritonKernels:
    """All layers of a call at once, of any shape, strides and floating dtype."""

    float_gates: ClassVar[bool] = True
    _tables: dict[tuple[object, ...], Table] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def why_not(cls, device: torch.device) -> str | None:
        if not installed("triton"):
            return "triton is not installed (on Linux, torch for CUDA brings it)"
        interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        if device.type == "cuda" or interpreted:
            return None
        return f"triton computes on CUDA, the weights are on {device.type}"

    @torch.no_grad()
    def prune(self, jobs: Sequence[Job]) -> Tensor:
        if not jobs:
            return torch.zeros(0, dtype=torch.int64)
        device = jobs[0].weight.device
        with torch.cuda.device(device if device.type == "cuda" else -1):  # where Triton launches
            table = self._table(jobs)
            counts = torch.zeros(len(jobs), dtype=torch.int64, device=device)
            for size, part in table.parts.items():
                _prune(jobs, table, size, part, counts)
        return counts

    def silence(self, gradients: Sequence[Tensor], gates: Sequence[Tensor]) -> None:
        torch._foreach_mul_(list(gradients), list(gates))  # as `TorchKernels` does, which says why

    def _table(self, jobs: Sequence[Job]) -> Table:
        lie = places(jobs)
        key = identity(jobs, lie)
        if key not in self._tables:
            if len(self._tables) == _TABLES:
                del self._tables[next(iter(self._tables))]
            self._tables[key] = build(jobs, lie)
        return self._tables[key]


def _prune(jobs: Sequence[Job], table: Table, size: int, part: Part, counts: Tensor) -> None:
    """Bring those layers down whose weights have `size` bytes."""
    from starfire_cli.pruning.kernels import _triton_device as device

    rows, targets, programs = table.rows, table.targets, part.programs
    keys = torch.empty(part.keys, dtype=torch.int64 if size == 8 else torch.int32, device=counts.device)
    windows = programs["windows"]
    _launch(device.scan, windows, rows, targets, windows, counts, keys, BYTES=size, BLOCK=BLOCK)
    for name in ("nine", "inside"):
        if name in programs:
            arguments = (rows, targets, programs[name], counts)
            _launch(getattr(device, name), programs[name], *arguments, BYTES=size, BLOCK=BLOCK)
    if part.tiled:
        _take_tiles(jobs, rows, part, keys)
    if "neurons" in programs:
        tally = torch.zeros(len(rows), 2, dtype=torch.int64, device=keys.device)
        neurons = programs["neurons"]
        _launch(device.neurons, neurons, rows, neurons, keys, tally, BYTES=size, BLOCK=BLOCK)
        _select(rows, programs["weights"], keys, tally, size)
    for held, shares in programs.items():
        if isinstance(held, int):
            sizes: dict[str, Any] = {"HELD": held, "WIDE": channels_held(held), "BITS": held.bit_length()}
            warps = min(16, max(1, held * channels_held(held) // 1024))
            _launch(device.channels, shares, rows, shares, keys, BYTES=size, **sizes, num_warps=warps)
    _launch(device.apply, windows, rows, targets, windows, counts, keys, BLOCK=BLOCK)


def _launch(kernel: Any, programs: Tensor, *arguments: Any, **constants: Any) -> None:
    if len(programs):  # The kernels compute with whole numbers only; but Triton 3.9 warns unless told about fusion.
        kernel[(len(programs),)](*arguments, **constants, enable_fp_fusion=False)


def _select(rows: Tensor, programs: Tensor, keys: Tensor, tally: Tensor, size: int) -> None:
    """Make the smallest keys of each row -1, as many as are due; `size`: of what the keys stand for, in bytes."""
    from starfire_cli.pruning.kernels import _triton_device as device

    digits = size + 4  # an index has four
    histograms = torch.zeros(len(rows), digits, 256, dtype=torch.int32, device=keys.device)
    for digit in range(digits + 1):
        arguments = (rows, programs, keys, tally, histograms, digit)
        _launch(device.select, programs, *arguments, BYTES=size, DIGITS=digits, BLOCK=BLOCK)


def _take_tiles(jobs: Sequence[Job], rows: Tensor, part: Part, keys: Tensor) -> None:
    """Make the keys of all weights -1 whose tiles go."""
    tally = torch.zeros(len(rows), 2, dtype=torch.int64, device=keys.device)
    scores: list[Tensor] = []
    for number, row, _ in part.tiled:
        score_T, alive_T, guard_T = _tile_scores(jobs[number])
        tally[row, 0] = guard_T.sum()
        tally[row, 1] = (~alive_T).sum()
        scores.append(torch.where(guard_T, torch.inf, torch.where(alive_T, score_T, -1.0)))
    tile_keys = torch.cat([score_T.flatten() for score_T in scores]).view(torch.int64)  # -1.0 is below 0 here, too
    _select(rows, part.programs["tiles"], tile_keys, tally, 8)
    gone = torch.split(tile_keys < 0, [score_T.numel() for score_T in scores])
    for (number, _, start), score_T, gone_N in zip(part.tiled, scores, gone, strict=True):
        (O, I), n = jobs[number].layer.shape, _tile(jobs[number])
        gone_OI = gone_N.view_as(score_T).repeat_interleave(n, 0).repeat_interleave(n, 1)[:O, :I]
        keys[start : start + O * I].view(O, I).masked_fill_(gone_OI, -1)


def _tile_scores(job: Job) -> tuple[Tensor, Tensor, Tensor]:
    """Of a linear layer's tiles the scores, float64, which are alive and which keep a neuron alive, (rows, columns).

    By the very operations of `linear_mask`: a sum in another order may round to another number.
    """
    (O, I), n = job.layer.shape, _tile(job)
    rows, columns = tiles_of(job.layer, n)
    edges = (0, columns * n - I, 0, rows * n - O)
    score_OI = torch.where(job.alive, job.weight.detach().abs().double(), 0.0)
    score_T = pad(score_OI, edges).reshape(rows, n, columns, n).sum((1, 3))
    alive_NT = pad(job.alive, edges).reshape(rows * n, columns, n).any(-1)  # by neuron and tile
    guard_NT = _strongest(score_T.repeat_interleave(n, 0), alive_NT)
    alive_T, guard_T = (x.reshape(rows, n, columns).any(1) for x in (alive_NT, guard_NT))
    return score_T, alive_T, guard_T


def _tile(job: Job) -> int:
    assert isinstance(job.budget, LinearBudget)
    return job.budget.tile
