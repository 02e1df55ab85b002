"""A convolution's three passes over its live weights, or in torch where that is faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from starfire_cli.sparse import compiler, machine
from starfire_cli.sparse.training import correlate, weight_gradient, weight_moves
from starfire_cli.sparse.training.geometry import ConvShape, TileKind, TileSize, tile_kinds
from starfire_cli.sparse.training.launch import Launch, Loop
from starfire_cli.sparse.training.maps import new_map, to_map
from starfire_cli.sparse.training.tables import LiveKernels, WeightTable

Pass = Literal["forward", "input", "weight"]
PASSES: tuple[Pass, ...] = ("forward", "input", "weight")
_ALL = 1 << 30
_NEAR = 64 << 10  # bytes of a channel's map that are gone through at a time
_WHOLE = 0.7  # share of live weights in live kernels from which whole kernels are computed
_TASKS = 4  # of each thread, at least


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to compute a pass.

    Args:
        tile: of the loop; None in torch.
        at_once: source channels that are gone through by all target channels.
    """

    tile: TileSize | None
    at_once: int = _ALL

    @property
    def text(self) -> str:
        """As text, which `way_of` reads."""
        tile = self.tile
        return "torch" if tile is None else f"{tile.rows}x{tile.columns}x{tile.vectors}/{self.at_once}"


IN_TORCH = Way(tile=None)


def way_of(text: str) -> Way:
    """The way that has this text. Raises ValueError."""
    if text == IN_TORCH.text:
        return IN_TORCH
    tile, _, at_once = text.partition("/")
    rows, columns, vectors = (int(n) for n in tile.split("x"))
    return Way(tile=TileSize(rows=rows, columns=columns, vectors=vectors), at_once=int(at_once))


class LiveConvolution:
    """A convolution of maps of one size.

    Args:
        module: whose weight is read at every step.
        shape: its sizes.
        images: that a map holds.
    """

    def __init__(self, module: nn.Conv2d, shape: ConvShape, images: int) -> None:
        self.module, self.shape, self.images, self.lanes = module, shape, images, compiler.lanes()
        self.whole = True
        self.ways: dict[Pass, Way] = {}
        self._ragged = False  # whether dead weights are computed with live ones of their kernels
        self._mask: Tensor | None = None
        self._launches: dict[tuple[Pass, Way, bool], Launch] = {}
        self._tables: dict[tuple[bool, int], WeightTable] = {}
        self._moves: dict[tuple[str, bool, int], Launch] = {}

    @property
    def weight(self) -> Tensor:
        """(K, C / groups, R, S)."""
        return self.module.weight

    @property
    def density(self) -> float:
        """The share of live weights."""
        return 1.0 if self._mask is None else float(self._mask.float().mean())

    def update(self, mask_KCRS: Tensor | None, whole: bool | None = None) -> None:
        """Take new masks.

        Args:
            mask_KCRS: bool; None: all weights live.
            whole: compute whole kernels; None: where most weights of live kernels live.
        """
        alive = torch.ones(self.weight.shape, dtype=torch.bool) if mask_KCRS is None else mask_KCRS.detach().cpu()
        inside, live = int(alive.flatten(2).any(2).sum()) * self.weight[0, 0].numel(), int(alive.sum())
        if whole is None:
            whole = self.shape.size != (1, 1) and live >= _WHOLE * inside
        self._ragged = whole and live < inside
        if whole != self.whole:
            self._launches.clear()
        self.whole, self._mask = whole, mask_KCRS
        self._tables.clear()
        self._moves.clear()
        for (name, way, _), launch in self._launches.items():
            self._set_table(launch, name, way)

    def candidates(self, name: Pass) -> list[Way]:
        """Ways to compute a pass, those that are most often the fastest first."""
        wide = compiler.lanes() == 16  # and 32 registers
        if not self.whole or self.shape.is_flat:
            sizes = [(8, 48), (16, 32)] if wide else [(8, 48), (4, 96)]
            if self.shape.is_flat:
                return [Way(tile=TileSize(rows=1, columns=n, vectors=1), at_once=at) for n, at in sizes]
            return [Way(tile=TileSize(rows=2, columns=n // 2, vectors=1), at_once=at) for n, at in sizes]
        tiles = [(4, 4, 1), (2, 2, 4)] if wide else [(2, 4, 1), (2, 2, 2)]
        return [Way(tile=TileSize(rows=r, columns=c, vectors=v)) for r, c, v in tiles]

    def forget_others(self) -> None:
        """Give back the memory of ways that were not chosen."""
        chosen = {(name, self.way(name)) for name in PASSES}
        self._launches = {key: made for key, made in self._launches.items() if key[:2] in chosen}
        self._tables.clear()
        self._moves.clear()
        for (name, way, _), launch in self._launches.items():
            self._set_table(launch, name, way)

    def way(self, name: Pass) -> Way:
        """The way that was chosen for a pass."""
        return self.ways.get(name) or self.candidates(name)[0]

    def forward(self, x: Tensor, images: int) -> Tensor:
        """The output map.

        Args:
            x: the input map.
            images: in it.
        """
        way = self.way("forward")
        if way.tile is None:
            y = self._dense_forward(x)
        else:
            y = new_map(self.module.out_channels, *self.shape.outputs, self.images)
            self._correlate("forward", way, x, y, add=False)
        if self.module.bias is not None:
            y[..., :images] += self.module.bias.detach()[:, None, None, None]
        return y

    def input_gradient(self, dy: Tensor, into: Tensor | None) -> Tensor:
        """The gradient of the input map.

        Args:
            dy: of the output map.
            into: a gradient of the input map that this one is added to.
        """
        way = self.way("input")
        if way.tile is None:
            return self._dense_input_gradient(dy, into)
        dx = new_map(self.module.in_channels, *self.shape.pixels, self.images) if into is None else into
        self._correlate("input", way, dy, dx, add=into is not None)
        return dx

    def weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """The gradient of the weight, (K, C / groups, R, S); zero where it is dead."""
        way = self.way("weight")
        if way.tile is None:
            found = self._dense_weight_gradient(x, dy)
            return found if self._mask is None else found.mul_(self._mask)
        launch = self._launch("weight", way)
        table = self._table("weight", way)
        sums = torch.zeros(table.weights)
        launch.run(gradient=dy, source=x, gradient_plane=4 * dy.stride(0), source_plane=4 * x.stride(0), sums=sums)
        found = torch.zeros_like(self.weight, memory_format=torch.preserve_format)
        self._move("scatter", "weight", way, sums, found)
        return found.mul_(self._mask) if self._ragged and self._mask is not None else found

    def _correlate(self, name: Pass, way: Way, source: Tensor, target: Tensor, *, add: bool) -> None:
        launch = self._launch(name, way)
        values = torch.empty(self._table(name, way).weights)
        self._move("gather", name, way, self.weight.detach(), values)
        launch.run(
            source=source,
            target=target,
            source_plane=4 * source.stride(0),
            target_plane=4 * target.stride(0),
            weights=values,
            add=int(add),
        )

    def _table(self, name: Pass, way: Way) -> WeightTable:
        at_once = _ALL if name == "weight" and self.whole else way.at_once
        key = name == "input", at_once
        if key not in self._tables:
            alive = torch.ones(self.weight.shape, dtype=torch.bool) if self._mask is None else self._mask
            live = LiveKernels(alive, self.weight.stride(), self.module.groups, whole=self.whole)
            self._tables[key] = live.backward(at_once) if key[0] else live.forward(at_once)
        return self._tables[key]

    def _move(self, what: Literal["gather", "scatter"], name: Pass, way: Way, source: Tensor, target: Tensor) -> None:
        at_once = _ALL if name == "weight" and self.whole else way.at_once
        key = what, name == "input", at_once
        if key not in self._moves:
            table = self._table(name, way)
            made = Launch([Loop(code=weight_moves.moves(what), tasks=weight_moves.tasks(table.weights))])
            made.set({"where": table.where, "count": table.weights})
            self._moves[key] = made
        self._moves[key].run(source=source, target=target)

    def _launch(self, name: Pass, way: Way) -> Launch:
        key = name, way, self.whole
        if key not in self._launches:
            assert way.tile is not None
            kinds = tile_kinds(self.shape, way.tile, self.images, self.lanes, backward=name == "input")
            made = self._weight_launch(kinds) if name == "weight" else self._correlation_launch(kinds, name)
            self._set_table(made, name, way)
            self._launches[key] = made
        return self._launches[key]

    def _set_table(self, launch: Launch, name: Pass, way: Way) -> None:
        table = self._table(name, way)
        launch.set(
            {
                "channels": table.channels,
                "steps": table.steps,
                "at_once": table.at_once,
                "segments": table.segments,
                "entries": table.entries,
            }
        )

    def _correlation_launch(self, kinds: list[TileKind], name: Pass) -> Launch:
        channels = self.module.in_channels if name == "input" else self.module.out_channels
        wanted = _TASKS * machine.threads()
        blocks = [min(channels, max(1, wanted // len(kind.starts))) for kind in kinds]
        sizes = [-(-channels // n) for n in blocks]
        blocks = [-(-channels // n) for n in sizes]
        codes = [correlate.correlation(kind, lanes=self.lanes, whole=self.whole) for kind in kinds]
        made = Launch(
            [Loop(code=code, tasks=n * len(kind.starts)) for code, kind, n in zip(codes, kinds, blocks, strict=True)]
        )
        for i, (kind, n, size) in enumerate(zip(kinds, blocks, sizes, strict=True)):
            made.set({"starts": np.array(kind.starts, np.int32), "blocks": n, "per_block": size}, only=i)
        return made

    def _weight_launch(self, kinds: list[TileKind]) -> Launch:
        rows, columns = self.shape.outputs
        plane = 4 * rows * columns * self.images
        chunks = max(1, plane // _NEAR)
        make: Callable[..., Any] = weight_gradient.whole_kernels if self.whole else weight_gradient.single_weights
        made = Launch([Loop(code=make(kinds, lanes=self.lanes), tasks=self.module.out_channels)])
        made.set({"chunks": chunks})
        for i, kind in enumerate(kinds):
            starts = np.array(sorted(kind.starts), np.int32)
            bounds = np.searchsorted(starts[:, 0], np.arange(chunks + 1) * plane // chunks)
            made.set({f"starts{i}": starts, f"chunk{i}": bounds.astype(np.int32)})
        return made

    def _rows(self, values: Tensor) -> Tensor:
        C, H, W, N = values.shape
        return values.as_strided((C, H * W * N), (values.stride(0), 1))

    @property
    def _is_product(self) -> bool:
        return self.shape.is_flat and self.module.groups == 1

    def _dense_forward(self, x: Tensor) -> Tensor:
        m, weight = self.module, self.weight.detach()
        if self._is_product:
            y = new_map(m.out_channels, *self.shape.outputs, self.images)
            torch.mm(weight.flatten(1), self._rows(x), out=self._rows(y))
            return y
        made = F.conv2d(_as_torch_likes(x), weight, None, m.stride, self.shape.padding, m.dilation, m.groups)
        return to_map(made, self.images)

    def _dense_input_gradient(self, dy: Tensor, into: Tensor | None) -> Tensor:
        m, weight = self.module, self.weight.detach()
        if self._is_product:
            dx = new_map(m.in_channels, *self.shape.pixels, self.images) if into is None else into
            rows, left = self._rows(dx), weight.flatten(1).t()
            if into is None:
                torch.mm(left, self._rows(dy), out=rows)
            else:
                rows.addmm_(left, self._rows(dy))
            return dx
        x = torch.empty((self.images, m.in_channels, *self.shape.pixels), memory_format=torch.channels_last)
        made = to_map(self._convolution_backward(dy, x, (True, False, False)), self.images)
        return made if into is None else into.add_(made)

    def _dense_weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        if self._is_product:
            made = torch.mm(self._rows(dy), self._rows(x).t())
            return torch.empty_like(self.weight).copy_(made.view_as(self.weight))
        return self._convolution_backward(dy, _as_torch_likes(x), (False, True, False))

    def _convolution_backward(self, dy: Tensor, x: Tensor, wanted: tuple[bool, bool, bool]) -> Tensor:
        m = self.module
        found = torch.ops.aten.convolution_backward(
            _as_torch_likes(dy), x, self.weight.detach(), None, m.stride, self.shape.padding, m.dilation, False,
            [0, 0], m.groups, wanted,
        )  # fmt: skip
        made: Tensor = found[wanted.index(True)]
        return made


def _as_torch_likes(values: Tensor) -> Tensor:
    return values.permute(3, 0, 1, 2).contiguous(memory_format=torch.channels_last)
