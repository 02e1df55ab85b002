"""The table that the Triton kernels read: all layers and tensors, uploaded at once, and the division of the work among
programs.

Nothing here needs Triton or a CUDA device.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from starfire_cli.pruning.kernels import MaskJob
from starfire_cli.pruning.kernels._patterns import LinearCounts, counts_of, groups_of, read_counts
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.units import Budget

BLOCK = 1024
"""Windows, weights or tiles that one program works on."""

NINE = 512
"""Windows of nine weights that one program works on, all of which it holds in registers."""

NEURON = 512
"""Weights of an output neuron that one program holds in registers."""

WIDE, HIGH, ROWS = 128, 64, 8
"""Input channels of one program, kernels of each (fewer if they are large), and the least number of kernels."""

FEW = 8
"""So many kernels of a channel, due at once, are found chunk by chunk, looking at each weight once for each."""

LISTED = 4096
"""So many weights of a linear layer are listed, and only these are looked at if they are enough."""

KINDS = ("inside", "channels", "weights", "tiles")
"""Kinds of work: inside of windows, or whole kernels (or only to be counted); of linear layers weights, or tiles."""

_COMBINATIONS = [frozenset(name for n, name in enumerate(KINDS) if bits >> n & 1) for bits in range(16)]
_PASSED_OVER = (-1, 0, 0)
_SPAN = {2: 1 << 2, 4: 1 << 18, 8: 1 << 47}  # some hundredths of a weight, at first
_INF = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}


class Row(IntEnum):
    """The columns of a layer's row; a layer that loses tiles has a second row, whose windows are its tiles."""

    WINDOWS = 0  # K * C, or O * I
    INNER = 1  # C, or I
    TAPS = 2  # R * S
    S = 3
    RIVALS = 4  # K / groups: how many kernels compete
    KEYS = 5  # of tiles, where their keys start, in elements
    FIRST = 6  # its tensors, rows of the other table: weight, alive, others
    END = 7
    INF = 8  # infinity's key
    CHUNK = 9  # where its programs of `weakest`, or `neurons`, put what they find: the first one's number
    HIGH = 10  # how many kernels one of these programs looks at
    CHUNKS = 11  # how many of these a share has
    LIST = 12  # where its weights are listed, in lists; -1 where it is no linear layer
    WIDTH = 14  # even: addresses stay multiples of 16


class Due(IntEnum):
    """The columns of a layer's due counts; the only table that changes from call to call."""

    IN_WINDOW = 0  # how many go in each window; -1 where the layer is passed over
    COUNT = 1  # kernels of each input channel; weights of a linear layer, or tiles
    MORE = 2  # of a convolution, how many kernels more than last time; 0 where these are not few
    WIDTH = 3


class Tally(IntEnum):
    """The columns of the counters of a linear layer, or of its tiles, during a call."""

    GUARDS = 0  # how many stay in any case: one of each neuron that is alive
    DEAD = 1
    LISTED = 2  # weights, be there room for them or not
    DONE = 3  # 1 where what is listed is enough, and all is done
    WIDTH = 4


class Target(IntEnum):
    """The columns of a tensor's row."""

    ADDRESS = 0
    SIZE = 1  # bytes of an element
    STRIDE = 2  # four of them, in elements
    WIDTH = 6


class Tiled(NamedTuple):
    """A linear layer that loses tiles: the job's number, the row of its tiles, their side."""

    job: int
    row: int
    tile: int


@dataclass(kw_only=True)
class Part:
    """The layers whose weights have the same size; all but always that is every layer of a call.

    Args:
        keys: how many keys their tiles need.
        lists: how many linear layers there are,
        neurons: and output neurons.
        tiled: those that lose tiles.
        chunks: how many programs `weakest` has.
        programs: the programs of each launch, int64, (programs, 2): a row, and which part of it.
            "layers": one layer. "windows": `BLOCK` windows of convolutions that lose weights inside of them. "nine",
            "inside": of windows of nine weights, and of others. "channels": `WIDE` input channels of a group; "fours",
            "ones": `Row.HIGH` of the kernels that read these, four channels lying side by side or not. "lists": one
            linear layer; "neurons": one output neuron of it; "tiles": `BLOCK` tiles. Of layers that are too large to be
            listed as a whole "weights": `BLOCK` weights.
    """

    keys: int = 0
    lists: int = 0
    neurons: int = 0
    chunks: int = 0
    tiled: list[Tiled] = field(default_factory=list)
    programs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The table of the layers of a call, on the device; it holds for any budgets.

    Args:
        rows: (rows, Row.WIDTH), int64; the row of a job has the job's number.
        targets: (tensors, Target.WIDTH), int64.
        limits: (layers, 2), int64, which calls change: of a linear layer below which key weights are listed, and how
            far that is above the cutoff of the call before.
        parts: by the bytes of a weight: 2, 4 or 8.
        tiles: the jobs that may lose tiles, in the order of their second rows, with the side of a tile.
        windows: the jobs that may lose something inside of windows.
        across: the jobs whose kernels compete across groups.
    """

    rows: Tensor
    targets: Tensor
    limits: Tensor
    parts: dict[int, Part]
    tiles: dict[int, int]
    windows: set[int]
    across: set[int]

    def due(
        self, budgets: Sequence[Budget | None], kernels: list[int], more: list[int]
    ) -> tuple[list[int], frozenset[str]]:
        """The rows of `Due`, flattened, and those of `KINDS` that are due at all.

        `kernels` and `more` are brought up to date: of each layer how many kernels are due of a channel, and how many
        more these are than before. Raises LookupError where a layer is to lose what no program looks at.
        """
        due: list[int] = []
        inside = channels = weights = 0
        distinct = {id(budget): budget for budget in budgets if budget is not None}  # layers of one shape share theirs
        read = {key: read_counts(budget) for key, budget in distinct.items()}
        counts = [read.get(id(budget)) for budget in budgets]
        for number, count in enumerate(counts):  # as many times a step as there are layers: so one loop does it all
            if count is None:
                due += _PASSED_OVER
            elif isinstance(count, LinearCounts):
                if count.tiles and self.tiles.get(number) != count.tile:
                    raise LookupError(number)
                weights = 1
                due += (0, count.weights, 0)
            else:
                in_window, many, across = count
                if many and across != (number in self.across):
                    raise LookupError(number)
                if in_window:
                    if number not in self.windows:
                        raise LookupError(number)
                    inside = 1
                if many or not in_window:
                    channels = 1
                if many != kernels[number]:
                    more[number], kernels[number] = max(0, many - kernels[number]), many
                due += (in_window, many, more[number] if more[number] <= FEW else 0)
        tiles = 0
        for number in self.tiles:
            count = counts[number]
            many = count.tiles if isinstance(count, LinearCounts) else -1
            tiles |= many > 0
            due += (0, many, 0) if many >= 0 else _PASSED_OVER
        return due, _COMBINATIONS[inside + 2 * channels + 4 * weights + 8 * tiles]


def build(jobs: Sequence[MaskJob], budgets: Sequence[Budget]) -> Table:
    """The table of `jobs`, on their device, uploaded without waiting.

    There are programs for tiles, and for windows of one weight, only where a budget has such.
    """
    rows: list[list[int]] = []
    rows_of_tiles: list[list[int]] = []
    limits: list[list[int]] = []
    losing_tiles: dict[int, int] = {}
    losing_inside: set[int] = set()
    across: set[int] = set()
    targets: list[list[int]] = []
    parts: dict[int, Part] = defaultdict(Part)
    launches: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)  # of (row, how many programs)
    grids: dict[tuple[int, str], list[tuple[int, int, int]]] = defaultdict(list)  # of (row, shares, chunks of each)
    for number, (job, budget) in enumerate(zip(jobs, budgets, strict=True)):
        layer, size, counts = job.layer, job.weight.element_size(), counts_of(job.layer, budget)
        assert counts is not None, "a budget that `takes` does not know"
        part, groups = parts[size], groups_of(layer, counts)
        (K, C), rivals = layer.shape[:2], layer.shape[0] // groups
        launches[size, "layers"].append((number, 1))
        limit = 0
        chunk, high, chunks, listed = -1, 0, 0, -1
        if isinstance(counts, LinearCounts):
            if counts.tiles or counts.tile > 1:
                row, tiles = len(jobs) + len(rows_of_tiles), math.prod(tiles_of(layer, counts.tile))
                launches[size, "tiles"].append((row, _blocks(tiles)))
                rows_of_tiles.append([tiles, 0, 0, 0, 0, part.keys, *(0,) * 6, -1, 0])
                losing_tiles[number] = counts.tile
                part.tiled.append(Tiled(number, row, counts.tile))
                part.keys += tiles
            launches[size, "lists"].append((number, 1))
            launches[size, "neurons"].append((number, K))
            chunk, listed = part.neurons, part.lists
            part.neurons, part.lists = part.neurons + K, part.lists + 1
            if K * C <= LISTED:
                limit = (1 << 8 * size - 1) - 1
            else:
                launches[size, "weights"].append((number, _blocks(K * C)))
        else:
            shares, high = groups * _blocks(C, WIDE), max(ROWS, HIGH // layer.window)
            launches[size, "channels"].append((number, shares))
            chunk, chunks = part.chunks, _blocks(rivals, high)
            grids[size, "fours" if _side_by_side(job) else "ones"].append((number, shares, chunks))
            part.chunks += shares * chunks
            if counts.across:
                across.add(number)
            if layer.window > 1 or counts.in_window:
                losing_inside.add(number)
                launches[size, "windows"].append((number, _blocks(K * C)))
                nine = layer.window == 9
                share = (number, _blocks(K * C, NINE) if nine else _blocks(layer.weights))
                launches[size, "nine" if nine else "inside"].append(share)
        limits.append([limit, _SPAN[size]])
        tensors = [_target(tensor) for tensor in (job.weight, job.alive, *job.others)]
        targets += tensors
        own = [len(targets) - len(tensors), len(targets), _INF[job.weight.dtype], chunk, high, chunks, listed, 0]
        rows.append([K * C, C, layer.window, (*layer.shape, 1, 1)[3], rivals, -1, *own])
    programs = [_programs(shares) for shares in launches.values()] + [_grid(shares) for shares in grids.values()]
    tables = [np.array(rows + rows_of_tiles), np.array(targets), np.array(limits), *programs]
    rows_there, targets_there, limits_there, *work = _upload(tables, jobs[0].weight.device)
    for (size, name), tensor in zip([*launches, *grids], work, strict=True):
        parts[size].programs[name] = tensor
    return Table(
        rows=rows_there,
        targets=targets_there,
        limits=limits_there,
        parts=dict(parts),
        tiles=losing_tiles,
        windows=losing_inside,
        across=across,
    )


def tiles_of(layer: Layer, tile: int) -> tuple[int, int]:
    """The numbers of rows and columns of `tile` x `tile` tiles; those at the ragged edges are smaller."""
    return _blocks(layer.shape[0], tile), _blocks(layer.shape[1], tile)


def _target(tensor: Tensor) -> list[int]:
    extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    assert extent < 1 << 31, "places inside of a tensor are counted in 32 bits"
    return [tensor.data_ptr(), tensor.element_size(), *(*tensor.stride(), 0, 0)[:4]]


def _side_by_side(job: MaskJob) -> bool:
    """Whether channels 0 to 3, 4 to 7, ..., of 32 bits, of kernels of 1 or 3 x 3, lie next to one another, aligned."""
    sizes, tensors = job.layer.shape, (job.weight, job.alive)
    rest = [stride for tensor in tensors for n, stride in enumerate(tensor.stride()) if n != 1 and sizes[n] > 1]
    fours = all(n % 4 == 0 for n in (sizes[1], *rest)) and all(t.stride(1) == 1 for t in tensors)
    aligned = job.weight.data_ptr() % 16 == 0 and job.alive.data_ptr() % 4 == 0
    return fours and aligned and sizes[2:] in ((1, 1), (3, 3)) and job.weight.element_size() == 4


def _blocks(n: int, block: int = BLOCK) -> int:
    return -(-n // block)


def _programs(shares: Sequence[tuple[int, int]]) -> np.ndarray:
    """Expand (row, count) to (row, 0), (row, 1), ..."""
    row, many = np.array(shares).T
    return np.stack([row.repeat(many), np.arange(many.sum()) - (many.cumsum() - many).repeat(many)], 1)


def _grid(shares: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Expand (row, shares, chunks) to (row, share << 32 | chunk), chunk by chunk of all shares."""
    parts = [np.arange(wide) << 32 | np.arange(high)[:, None] for _, wide, high in shares]
    row = np.array([number for number, *_ in shares]).repeat([part.size for part in parts])
    return np.stack([row, np.concatenate([part.ravel() for part in parts])], 1)


def _upload(tables: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copy all tables to the device at once."""
    flat = torch.from_numpy(np.concatenate([table.ravel() for table in tables]))
    if device.type == "cuda":  # only from pinned memory does a copy not wait
        flat = flat.pin_memory()
    pieces = torch.split(flat.to(device, non_blocking=True), [table.size for table in tables])
    return [piece.view(-1, table.shape[1]) for piece, table in zip(pieces, tables, strict=True)]
