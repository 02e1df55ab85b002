"""What are the Triton kernels told? One table of all layers and tensors, uploaded at once, and who works on what.

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

from starfire_cli.pruning.budget import LinearBudget
from starfire_cli.pruning.kernels import Job
from starfire_cli.pruning.linear._rules import tiles_of

BLOCK = 512
"""Windows, weights or tiles that one program works on."""

_INF = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}


class Row(IntEnum):
    """The columns of a layer; a layer that loses tiles has a second row, whose windows are its tiles."""

    WINDOWS = 0  # K * C, or O * I
    INNER = 1  # C, or I
    TAPS = 2  # R * S
    S = 3
    IN_WINDOW = 4  # how many go in each window,
    COUNT = 5  # and kernels of each input channel; weights of a linear layer, or tiles
    RIVALS = 6  # K / groups: how many kernels compete
    KEYS = 7  # where its keys start, in elements; -1 where it needs none
    FIRST = 8  # its tensors, rows of the other table: weight, alive, others
    END = 9
    INF = 10  # infinity's key
    WIDTH = 12  # even: addresses stay multiples of 16


class Target(IntEnum):
    """The columns of a tensor."""

    ADDRESS = 0
    SIZE = 1  # bytes of an element
    STRIDE = 2  # four of them, in elements
    WIDTH = 6


class Tiled(NamedTuple):
    """A linear layer that loses tiles: the job's number, the row of its tiles, and where its own keys start."""

    job: int
    row: int
    keys: int


@dataclass(kw_only=True)
class Part:
    """The layers whose weights have the same size; all but always that is every layer of a call.

    Args:
        keys: how many keys these need,
        tile_keys: and how many their tiles.
        tiled: those that lose tiles.
        programs: the programs of each launch, int64, (programs, 2): a row, and which part of it.
            "windows": `BLOCK` windows, all layers. A number: `channels_held` channels with up to so many rivals each.
            "neurons": one output neuron of a layer that loses single weights; "weights": `BLOCK` weights of such a
            layer; "tiles": `BLOCK` tiles.
    """

    keys: int = 0
    tile_keys: int = 0
    tiled: list[Tiled] = field(default_factory=list)
    programs: dict[str | int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A call's table, on the device: `rows` (rows, Row.WIDTH) and `targets` (tensors, Target.WIDTH), int64.

    `parts` go by the bytes of a weight: 2, 4 or 8.
    """

    rows: Tensor
    targets: Tensor
    parts: dict[int, Part]


Places = Sequence[Sequence[tuple[int, int, tuple[int, ...]]]]  # of each job's tensors


def places(jobs: Sequence[Job]) -> Places:
    """Where each job's weight, mask and others lie: address, bytes of an element, strides."""
    tensors = ((job.weight, job.alive, *job.others) for job in jobs)
    return tuple(tuple((t.data_ptr(), t.element_size(), t.stride()) for t in some) for some in tensors)


def identity(jobs: Sequence[Job], lie: Places) -> tuple[object, ...]:
    """Equal for two calls that may share a table."""
    return (lie, *((job.layer.shape, job.layer.groups, job.budget, job.weight.dtype) for job in jobs))


def channels_held(rivals: int) -> int:
    """How many channels a program holds, with `rivals` kernels each: all of it has to fit into registers."""
    return max(1, min(16, 16384 // rivals))


def build(jobs: Sequence[Job], lie: Places) -> Table:
    """The table of `jobs`, whose tensors lie at `lie`, on their device; uploaded without waiting.

    The row of a job has the job's number.
    """
    rows: list[list[int]] = []
    rows_of_tiles: list[list[int]] = []
    targets: list[list[int]] = []
    parts: dict[int, Part] = defaultdict(Part)
    launches: dict[tuple[int, str | int], list[tuple[int, int]]] = defaultdict(list)  # of (row, how many programs)
    for number, job in enumerate(jobs):
        layer, size = job.layer, job.weight.element_size()
        part = parts[size]
        (K, C), rivals = layer.shape[:2], layer.shape[0] // layer.groups
        launches[size, "windows"].append((number, _blocks(K * C)))
        if isinstance(job.budget, LinearBudget):
            tiles_due, in_window, count = job.budget.tiles, 0, job.budget.weights
            if tiles_due:
                row, tiles = len(jobs) + len(rows_of_tiles), math.prod(tiles_of(layer, job.budget.tile))
                launches[size, "tiles"].append((row, _blocks(tiles)))
                rows_of_tiles.append([tiles, 0, 0, 0, 0, tiles_due, 0, part.tile_keys, 0, 0, 0, 0])
                part.tiled.append(Tiled(number, row, part.keys))
                part.tile_keys += tiles
            if count:
                launches[size, "neurons"].append((number, K))
                launches[size, "weights"].append((number, _blocks(K * C)))
        else:
            tiles_due, in_window, count = 0, *job.budget
            if in_window and layer.window == 9:
                launches[size, "nine"].append((number, _blocks(K * C)))
            elif in_window:
                launches[size, "inside"].append((number, _blocks(layer.weights)))
            if count:
                held = 4 ** max(3, -(-(rivals - 1).bit_length() // 2))
                launches[size, held].append((number, layer.groups * -(-C // channels_held(held))))
        keys = part.keys if count or tiles_due else -1
        part.keys += K * C if count or tiles_due else 0
        tensors = [[address, bytes_, *(*strides, 0, 0)[:4]] for address, bytes_, strides in lie[number]]
        targets += tensors
        own = [len(targets) - len(tensors), len(targets), _INF[job.weight.dtype], 0]
        rows.append([K * C, C, layer.window, (*layer.shape, 1, 1)[3], in_window, count, rivals, keys, *own])
    programs = [_programs(shares) for shares in launches.values()]
    on_device = _upload([np.array(rows + rows_of_tiles), np.array(targets), *programs], jobs[0].weight.device)
    for (size, name), tensor in zip(launches, on_device[2:], strict=True):
        parts[size].programs[name] = tensor
    return Table(rows=on_device[0], targets=on_device[1], parts=dict(parts))


def _blocks(n: int) -> int:
    return -(-n // BLOCK)


def _programs(shares: Sequence[tuple[int, int]]) -> np.ndarray:
    """(row, how many) to (row, 0), (row, 1), ... of each."""
    row, many = np.array(shares).T
    return np.stack([row.repeat(many), np.arange(many.sum()) - (many.cumsum() - many).repeat(many)], 1)


def _upload(tables: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """All in a single copy."""
    flat = torch.from_numpy(np.concatenate([table.ravel() for table in tables]))
    if device.type == "cuda":  # only from pinned memory does a copy not wait
        flat = flat.pin_memory()
    pieces = torch.split(flat.to(device, non_blocking=True), [table.size for table in tables])
    return [piece.view(-1, table.shape[1]) for piece, table in zip(pieces, tables, strict=True)]
