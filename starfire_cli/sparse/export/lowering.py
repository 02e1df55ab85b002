"""Lowers a traced network to jobs: each of its operations gets a loop, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.channels.graph import node_name
from starfire_cli.sparse.convolution import Work
from starfire_cli.sparse.export.buffers import Buffer, Value
from starfire_cli.sparse.export.jobs import RESULT, Job, convolving, gathers, moving
from starfire_cli.sparse.folding import attribute
from starfire_cli.sparse.loops import Finish
from starfire_cli.sparse.patterns import POINT, Shape
from starfire_cli.sparse.plan import Maps
from starfire_cli.sparse.tracing import Operation, TracedNetwork
from starfire_cli.sparse.weights import LiveWeights

INSTEAD = "docs/export.md lists what can be exported; starfire compress --to onnx writes any network"


class Unsupported(StarfireError):
    """An operation that has no loop."""


@dataclass
class Lowering:
    """The jobs of a network, as they are found.

    Args:
        network: what is lowered.
        shapes: of all values, for one image.
        jobs: in order.
        values: of the nodes so far: a `Value` for a tensor, a tuple of them, or what is no tensor.
    """

    network: TracedNetwork
    shapes: dict[fx.Node, Shape]
    jobs: list[Job] = field(default_factory=list)
    values: dict[fx.Node, Any] = field(default_factory=dict)

    def buffer(self, name: str, shape: tuple[int, ...]) -> Buffer:
        """A new map for a value of this shape, one image in front."""
        if len(shape) == 4:
            return Buffer(name=name, channels=shape[1], pixels=(shape[2], shape[3]))
        return Buffer(name=name, channels=1, pixels=(1, int(np.prod(shape))))

    def map(self, value: Value, name: str) -> Buffer:
        """The map of a value (1, C, H, W), which is copied where it does not lie so."""
        if value.is_map:
            return value.buffer
        found = self.buffer(name, value.shape)
        self.jobs.append(moving(name, found, value))
        return found

    def refuse(self, node: fx.Node, why: str) -> Unsupported:
        """The error for a node."""
        return Unsupported(f"{node_name(node)}: {why}; {INSTEAD}")


class Operator(Protocol):
    """Gives the value of a node whose operation it knows, and adds its jobs; None for any other."""

    def __call__(self, lowering: Lowering, node: fx.Node) -> Any:
        """Lower one node."""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A network as jobs, the last of which writes the result.

    Args:
        jobs: in order.
        maps: the layouts of their maps.
        image: (C, H, W).
        outputs: numbers for each image.
    """

    jobs: tuple[Job, ...]
    maps: Maps
    image: tuple[int, int, int]
    outputs: int


def lower(network: TracedNetwork, image: tuple[int, int, int], lanes: int, operators: tuple[Operator, ...]) -> Lowered:
    """Lower a network for images (C, H, W).

    Args:
        network: what is lowered; it must return (N, outputs).
        image: (C, H, W).
        lanes: floats in the widest vector.
        operators: what torch does in process.

    Raises StarfireError naming the first operation that has no loop.
    """
    if not network.in_loops:
        raise Unsupported("the network changes a tensor in place which another operation reads; write x = x + y for it")
    try:
        shapes = network.shapes((1, *image))
    except Exception as error:  # noqa: BLE001 - the network's own code may raise anything
        told = (str(error).splitlines() or [""])[0]
        raise StarfireError(f"the network does not take images of {' x '.join(map(str, image))}: {told}") from None
    operations = network.operations(shapes)
    maps = Maps(operations, shapes, lanes)
    if too_large := maps.too_large(operations):
        name = next(o.name for o in operations if o.node in too_large)
        raise StarfireError(f"{name}: maps of more than 2 GiB; give a smaller --image-size")
    lowering = Lowering(network, shapes)
    for operation in operations:
        lowering.values[operation.node] = _value(lowering, operation, operators)
    (returned,) = network.output.args
    result = lowering.values.get(returned) if isinstance(returned, fx.Node) else None
    if not isinstance(result, Value) or len(result.shape) != 2:
        raise Unsupported(f"the network returns {_described(result)}, not one tensor (N, classes); {INSTEAD}")
    lowering.jobs.append(moving("output", RESULT, result))
    for job in lowering.jobs:
        for buffer in (*job.reads, job.writes):
            maps.include(buffer.pixels)
        if job.work is not None and job.reads:
            maps.include_work(job.work, job.reads[0].pixels, job.writes.pixels)
    return Lowered(jobs=tuple(_needed(lowering.jobs)), maps=maps, image=image, outputs=result.shape[1])


def _value(lowering: Lowering, operation: Operation, operators: tuple[Operator, ...]) -> Any:
    node, name = operation.node, operation.name
    if operation.work is not None:
        return _worked(lowering, operation, operation.work)
    if operation.folded is not None:
        return linear(lowering, node, name, lowering.values[operation.inputs[0]], operation.folded.live)
    if node.op == "get_attr":
        return attribute(lowering.network.root, str(node.target))
    constant = not any(_holds_value(lowering.values[n]) for n in node.all_input_nodes)
    if constant or node not in lowering.shapes:
        found = _computed(lowering, node)
        if constant or not _holds_tensor(found):
            return found
    for operator in operators:
        found = operator(lowering, node)
        if found is not None:
            return found
    return _refused(lowering, node, name)


def _worked(lowering: Lowering, operation: Operation, work: Work) -> Value:
    shape = lowering.shapes[operation.node]
    reads = [lowering.map(lowering.values[n], operation.name) for n in operation.inputs]
    writes = lowering.buffer(operation.name, shape)
    lowering.jobs.append(convolving(operation.name, work, writes, reads))
    return Value(buffer=writes, shape=shape)


def linear(lowering: Lowering, node: fx.Node, name: str, value: Value, live: LiveWeights) -> Value:
    """The value of a linear layer: of one vector, or of the channels of each pixel."""
    shape = lowering.shapes[node]
    if int(np.prod(shape[:-1])) == 1:
        writes = lowering.buffer(name, (1, shape[-1]))
        lowering.jobs.append(gathers(name, writes, value, live))
        return Value(buffer=writes, shape=shape)
    if not value.is_channels_last:
        raise lowering.refuse(node, f"a linear layer of {len(shape)} dimensions, {tuple(shape)}")
    source = value.buffer
    writes = Buffer(name=name, channels=live.shape[0], pixels=source.pixels)
    work = Work(window=POINT, live=live, finish=Finish())
    lowering.jobs.append(convolving(name, work, writes, (source,)))
    return channels_last(writes)


def channels_last(buffer: Buffer) -> Value:
    """A whole map as (1, H, W, C)."""
    index = Value(buffer=buffer, shape=(1, *buffer.shape)).indices().permute(0, 2, 3, 1)
    return Value(buffer=buffer, shape=tuple(index.shape), index=index)


def _needed(jobs: list[Job]) -> list[Job]:
    """The jobs without those whose result nobody reads."""
    found: list[Job] = []
    read = {RESULT}
    for job in reversed(jobs):
        if job.writes in read:
            found.append(job)
            read |= set(job.reads)
    return found[::-1]


def _computed(lowering: Lowering, node: fx.Node) -> Any:
    """The result of a node that is no tensor, a size for instance; or a constant tensor."""
    with torch.no_grad():
        return call(lowering, node, lambda value: torch.empty(value.shape, device="meta"))


def call(lowering: Lowering, node: fx.Node, tensor: Callable[[Value], Tensor]) -> Any:
    """The result of a node's operation where `tensor` stands for each value. Raises StarfireError if it has none."""

    def filled(n: fx.Node) -> Any:
        return torch.utils._pytree.tree_map(lambda v: tensor(v) if isinstance(v, Value) else v, lowering.values[n])

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), filled)
    if node.op == "call_module":
        run: Any = lowering.network.root.get_submodule(str(node.target))
    else:
        run = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
    try:
        return run(*(args[1:] if node.op == "call_method" else args), **kwargs)
    except Exception as error:  # noqa: BLE001 - operations may want anything of what they are given
        told = (str(error).splitlines() or [""])[0]
        raise lowering.refuse(node, f"there is no loop for it here ({type(error).__name__}: {told})") from None


def _holds_value(found: Any) -> bool:
    return any(isinstance(part, Value) for part in torch.utils._pytree.tree_leaves(found))


def _holds_tensor(found: Any) -> bool:
    return any(isinstance(part, Tensor) for part in torch.utils._pytree.tree_leaves(found))


def _refused(lowering: Lowering, node: fx.Node, name: str) -> Any:
    if node.op == "call_module":
        what: Any = type(lowering.network.root.get_submodule(str(node.target))).__name__
    else:
        what = getattr(node.target, "__name__", node.target)
    raise lowering.refuse(node, f"there is no loop for {what} here")


def _described(result: Any) -> str:
    return f"{tuple(result.shape)}" if isinstance(result, Value) else f"a {type(result).__name__}"
