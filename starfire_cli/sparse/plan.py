"""The execution plan of a network for images of one shape: the order of its steps, their loops and their memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from starfire_cli.sparse import compiler, machine
from starfire_cli.sparse.convolution import TILINGS, Kind, Place, Tiling, Work, steps
from starfire_cli.sparse.folding import attribute
from starfire_cli.sparse.layout import Layout
from starfire_cli.sparse.linear import SparseLinear
from starfire_cli.sparse.machine import Program, Step
from starfire_cli.sparse.memory import Slots
from starfire_cli.sparse.patterns import Shape
from starfire_cli.sparse.pool import zeros
from starfire_cli.sparse.tracing import Operation, TracedNetwork

How = Literal["taps", "kernels", "dense", "torch", "onnxruntime"]
ROOM = 128 << 20  # bytes of maps that are kept for all images of a pass


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The implementation chosen for one layer, and why.

    Args:
        name: of the layer.
        how: `taps` or `kernels` for the sparse loops, `dense` for torch, `onnxruntime` where that runs the whole.
        seconds: what each way took for one image; empty where nothing was measured.
        tiling: of the loop, where one was measured.
    """

    name: str
    how: How
    seconds: dict[str, float]
    tiling: Tiling | None = None


class Maps:
    """The layouts of all maps of one network for one shape of image.

    Args:
        operations: of the network.
        shapes: of all values.
        lanes: floats in the widest vector; by default those of this processor.
    """

    def __init__(self, operations: Sequence[Operation], shapes: dict[fx.Node, Shape], lanes: int | None = None) -> None:
        self.lanes = compiler.lanes() if lanes is None else lanes
        self._needs: dict[tuple[int, int], tuple[int, int]] = {}
        self.shapes = shapes
        for operation in operations:
            if operation.work is None:
                continue
            if not operation.inputs:
                self._need(self.pixels(operation.node), 0, 0)
                continue
            self.include_work(operation.work, self.pixels(operation.inputs[0]), self.pixels(operation.node))

    def include_work(self, work: Work, source: tuple[int, int], target: tuple[int, int]) -> None:
        """Make room for maps of so many pixels that a loop reads and writes."""
        (H, W), (out_H, out_W) = source, target
        room = work.window.room
        if work.in_place:
            room = work.window.room_in_place
        elif work.halved:
            self._need((H, W), 1, 1)
            H, W = -(-H // 2), -(-W // 2)
        self._need((H, W), room(0, H, out_H), room(1, W, out_W))
        self._need((out_H, out_W), 0, 0)

    def include(self, pixels: tuple[int, int]) -> None:
        """Make room for maps of so many pixels, which no operation's own need names."""
        self._need(pixels, 0, 0)

    def too_large(self, operations: Sequence[Operation]) -> set[fx.Node]:
        """The operations that read maps in which the loops' int32 offsets would overflow: they are left to torch."""
        found = set()
        for operation in operations:
            if operation.work is None or operation.work.does not in ("sum", "max"):
                continue  # the others count in int64
            source, channels = operation.inputs[0], self.shapes[operation.inputs[0]][1]
            seen = [self.layout(self.pixels(source)).reachable(channels)]
            if operation.work.halved:
                seen.append(self.layout(self.halved(source)).reachable(channels * len(operation.work.halves())))
            seen.append(self.layout(self.pixels(operation.node)).reachable(1))
            if not all(seen):
                found.add(operation.node)
        return found

    def layout(self, pixels: tuple[int, int]) -> Layout:
        """The layout of maps of so many pixels."""
        above, beside = self._needs[pixels]
        widest = self.lanes
        lanes = widest if pixels[1] > widest // 2 else max(4, widest // 2)
        return Layout(height=pixels[0], width=pixels[1], above=above, beside=beside, lanes=lanes)

    def pixels(self, node: fx.Node) -> tuple[int, int]:
        """The height and width of a map."""
        return self.shapes[node][2], self.shapes[node][3]

    def halved(self, node: fx.Node) -> tuple[int, int]:
        """The height and width of each half of a map."""
        H, W = self.pixels(node)
        return -(-H // 2), -(-W // 2)

    def _need(self, pixels: tuple[int, int], above: int, beside: int) -> None:
        old = self._needs.get(pixels, (0, 0))
        self._needs[pixels] = (max(old[0], above), max(old[1], beside))


@dataclass(frozen=True, kw_only=True)
class _Stage:
    operations: list[Operation]
    program: Program | None


class ExecutionPlan:
    """Everything that is fixed before the first image comes.

    Args:
        network: what is computed.
        images: their shape, (N, C, H, W); of N only whether it is one counts.
        operations: of the network for such images.
        maps: their layouts.
        choices: for each operation, in order.
        dense: the weights of the layers that torch runs; those in `network` by default, made as needed.
        layout: of maps in torch, where it runs everything.
    """

    def __init__(
        self,
        network: TracedNetwork,
        images: Shape,
        operations: Sequence[Operation],
        maps: Maps,
        choices: Sequence[Choice],
        *,
        dense: dict[fx.Node, Tensor] | None = None,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._network, self._alone, self._layout = network, images[0] == 1, layout
        self._dense = network.dense if dense is None else dense
        self._how = {operation.node: choice.how for operation, choice in zip(operations, choices, strict=True)}
        self._tiling = {operation.node: choice.tiling for operation, choice in zip(operations, choices, strict=True)}
        for o in operations:
            if o.folded and self._how[o.node] == "dense" and o.node not in self._dense:
                self._dense[o.node] = o.folded.live.dense()
        self._linear: dict[tuple[fx.Node, int], SparseLinear] = {}
        groups = [list(group) for _, group in groupby(operations, self._in_loops)]
        self._places, halves = self._memory(groups, maps)
        self._stages = [
            _Stage(operations=group, program=self._program(group, halves) if self._in_loops(group[0]) else None)
            for group in groups
        ]
        self._free: list[tuple[Tensor, Tensor]] = []
        self._last_use = {source: operation.node for operation in operations for source in operation.inputs}
        self._returned = set(network.output.all_input_nodes)

    @property
    def at_once(self) -> int:
        """The number of images of one pass."""
        return max(machine.threads(), ROOM // (4 * self._kept))

    def run(self, images: Tensor) -> Any:
        """The network's output for images (N, C, H, W), float32."""
        passing, kept = self._take(len(images))
        values: dict[fx.Node, Any] = {self._network.input: images.contiguous(memory_format=self._layout)}
        pixels = list(machine.addresses(values[self._network.input]))
        try:
            for stage in self._stages:
                if stage.program is None:
                    for operation in stage.operations:
                        self._in_torch(operation, values, kept)
                elif len(images) == 1:
                    stage.program.run_one(passing.data_ptr(), kept.data_ptr(), pixels[0], machine.threads())
                else:
                    stage.program.run_many(list(machine.addresses(passing)), list(machine.addresses(kept)), pixels)
            (returned,) = self._network.output.args
            return fx.node.map_arg(returned, lambda node: self._value(node, values, kept))
        finally:
            self._free.append((passing, kept))

    def _in_loops(self, operation: Operation) -> bool:
        return operation.work is not None and self._how[operation.node] in ("taps", "kernels")

    def _memory(self, groups: list[list[Operation]], maps: Maps) -> tuple[dict[fx.Node, Place], dict[fx.Node, Place]]:
        """Plan the memory of all maps, and of the halves of those that are read with stride 2."""
        stage = {operation.node: i for i, group in enumerate(groups) for operation in group}
        loops = {operation.node for group in groups for operation in group if self._in_loops(operation)}
        touched: dict[fx.Node, None] = {}  # maps that loops read or write
        readers: dict[fx.Node, list[Operation]] = {}
        for operation in (o for group in groups for o in group):
            for source in operation.inputs:
                readers.setdefault(source, []).append(operation)
            if operation.node in loops:
                touched |= dict.fromkeys((*operation.inputs, operation.node))
        returned = set(self._network.output.all_input_nodes)
        kept = {
            node
            for node in touched
            if node not in loops
            or node in returned
            or any(r.node not in loops or stage[r.node] != stage[node] for r in readers.get(node, []))
        }
        slots = {is_kept: Slots(kept=is_kept) for is_kept in (False, True)}
        number: dict[fx.Node, int] = {}
        half: dict[fx.Node, tuple[int, int]] = {}

        def take(node: fx.Node) -> None:
            number[node] = slots[node in kept].take(maps.layout(maps.pixels(node)), maps.shapes[node][1])

        left = {node: len(found) for node, found in readers.items()}
        if self._network.input in touched:
            take(self._network.input)
        for operation in (o for group in groups for o in group):
            node = operation.node
            if node in touched and node not in number:
                take(node)
            if node in loops and operation.work is not None and operation.work.halved:
                channels = maps.shapes[operation.inputs[0]][1] * len(operation.work.halves())
                slot = slots[False].take(maps.layout(maps.halved(operation.inputs[0])), channels)
                half[node] = slot, channels
                slots[False].release(slot)
            for source in operation.inputs:
                left[source] -= 1
                if not left[source] and source in number and source not in returned:
                    slots[source in kept].release(number[source])
        self._passing, self._kept = slots[False].fix_offsets(), slots[True].fix_offsets()
        places = {n: slots[n in kept].place(i, maps.shapes[n][1]) for n, i in number.items()}
        return places, {n: slots[False].place(i, channels) for n, (i, channels) in half.items()}

    def _program(self, group: list[Operation], halves: dict[fx.Node, Place]) -> Program:
        found: list[Step] = []
        sharing = machine.threads() if self._alone else 1
        for o in group:
            assert o.work is not None
            kind: Kind = "kernels" if self._how[o.node] == "kernels" else "taps"
            source, *others = (self._places[node] for node in o.inputs or (o.node,))
            other = others[0] if others else None
            found += steps(
                o.work,
                kind,
                self._tiling[o.node] or TILINGS[kind][compiler.lanes()][0],
                source,
                self._places[o.node],
                other=other,
                half=halves.get(o.node),
                threads=sharing,
                lanes=compiler.lanes(),
                cache=self._network.weights_cache,
            )
        return Program(found)

    def _take(self, images: int) -> tuple[Tensor, Tensor]:
        """Take memory that no other call uses now."""
        rows = 1 if self._alone else max(1, min(images, machine.threads()))
        with contextlib.suppress(IndexError):  # none is free, or another thread was faster
            while True:
                passing, kept = self._free.pop()
                if len(kept) >= images and len(passing) >= rows:
                    return passing[:rows], kept[:images]
        return zeros(rows, self._passing), zeros(images, self._kept)

    def _value(self, node: fx.Node, values: dict[fx.Node, Any], kept: Tensor) -> Any:
        if node in values:
            return values[node]
        # A copy, as torch lays maps out: it may view it in any way, change it, and keep it while the map is gone.
        place = self._places[node]
        return place.layout.view(kept, place.offset, place.channels).clone(memory_format=torch.contiguous_format)

    def _in_torch(self, operation: Operation, values: dict[fx.Node, Any], kept: Tensor) -> None:
        node = operation.node
        if operation.work is not None and operation.work.does == "scale":
            live = operation.work.live
            scale, shift = (torch.from_numpy(array)[:, None, None] for array in (live.values, live.bias))
            result = values[self._network.input] * scale + shift
            values[node] = result
        else:
            result = self._computed(operation, lambda n: self._value(n, values, kept))
            values[node] = result
        if node in self._places:
            place = self._places[node]
            place.layout.view(kept, place.offset, place.channels).copy_(result)
        for source in operation.inputs:
            if self._last_use[source] is node and source not in self._returned:
                values.pop(source, None)

    def _computed(self, operation: Operation, value: Callable[[fx.Node], Any]) -> Any:
        node, folded = operation.node, operation.folded
        if folded is not None:
            found = [value(n) for n in operation.inputs]
            if folded.window is None:
                return self._linearly(operation, found[0])
            return dense_convolution(operation, self._dense[node], found)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if node.op == "get_attr":
            return attribute(self._network.root, str(node.target))
        if node.op == "call_module":
            return self._network.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _linearly(self, operation: Operation, value: Tensor) -> Tensor:
        assert operation.folded is not None
        live = operation.folded.live
        if self._how[operation.node] == "dense":
            return F.linear(value, self._dense[operation.node][:, :, 0, 0], torch.from_numpy(live.bias))
        rows = value.shape[:-1].numel()
        if not rows:
            return value.new_empty((*value.shape[:-1], live.shape[0]))
        most = SparseLinear.max_images(live.shape[1])
        if rows > most:
            parts = torch.split(value.reshape(rows, -1), most)
            return torch.cat([self._linearly(operation, part) for part in parts]).reshape(*value.shape[:-1], -1)
        key = operation.node, rows
        if key not in self._linear:
            self._linear[key] = SparseLinear(live, rows)
        return self._linear[key](value)


def dense_convolution(operation: Operation, weight: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """The work of a loop, done by torch."""
    work, folded = operation.work, operation.folded
    assert work is not None and folded is not None
    window, live = work.window, folded.live
    found = F.conv2d(
        inputs[0], weight, torch.from_numpy(live.bias), window.stride, window.padding, window.dilation, live.groups
    )
    if work.finish.add:
        found = found.add_(inputs[1])
    if work.finish.high:
        return found.clamp_(0.0, work.high)
    return found.relu_() if work.finish.low else found
