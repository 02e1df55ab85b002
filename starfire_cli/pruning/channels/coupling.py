"""Finds the channels that must be kept or removed together: a layer's outputs, the BatchNorm that scales them, the sums
they enter and the layers that read them.

Each channel of each layer's output gets a number; a sum unites the numbers of what it adds, a concatenation strings
them together, flattening repeats them once a pixel. All dimensions of all parameters that carry one number are cut
together. A channel that meets an operation not listed here is pinned, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from starfire_cli.pruning.channels.constants import Constants
from starfire_cli.pruning.channels.graph import Traced, node_name


@dataclass(frozen=True, kw_only=True)
class ConsumerLayer:
    """A layer whose input dimension can shrink: a convolution of one group, or a linear layer.

    Args:
        name: module name.
        node: where it is called.
        reads_I: the channel number of each of its inputs.
        gives_O: the channel number of each of its outputs.
    """

    name: str
    node: fx.Node
    reads_I: Tensor
    gives_O: Tensor


@dataclass(kw_only=True)
class Channels:
    """The channel numbers of a network.

    Args:
        consumers: in the order of the graph.
        owners: module name -> channel number of each entry of its output dimension (convolutions, linear layers,
            BatchNorm, and depthwise convolutions, whose inputs are tied to their outputs).
        pinned: channel number -> why it must stay.
        count: every number is below it.
    """

    consumers: list[ConsumerLayer] = field(default_factory=list)
    owners: dict[str, Tensor] = field(default_factory=dict)
    pinned: dict[int, str] = field(default_factory=dict)
    count: int = 0


def find_channels(traced: Traced, found: Constants) -> Channels:
    """Number the channels of a traced network whose shapes are known."""
    run = _Numbering(traced, found)
    for node in traced.root.graph.nodes:
        run.visit(node)
    return run.result()


class _Numbering:
    """One walk over the graph. Numbers are united by pointing the higher at the lower (`_parent`)."""

    def __init__(self, traced: Traced, found: Constants) -> None:
        self.traced, self.shapes = traced, found.shapes
        self.numbers: dict[fx.Node, list[int]] = {}
        self.channels = Channels()
        self._parent: list[int] = []
        self._pinned: list[tuple[int, str]] = []
        self._readers: list[tuple[str, fx.Node, list[int], list[int]]] = []
        self._owners: list[tuple[str, list[int]]] = []

    def visit(self, node: fx.Node) -> None:
        """Number the channels of the output of `node`."""
        role = self.traced.role(node)
        inputs = [n for n in node.all_input_nodes if n in self.numbers]
        if role == "shape":
            return
        if role == "output":
            self._pin(inputs, "is an output of the network")
            return
        if node not in self.shapes:  # several tensors, or none
            self._pin(inputs, f"passes through {node_name(node)}, which is not followed")
            return
        numbers = None
        if node.op == "call_module" and role in ("conv", "linear", "batchnorm"):
            numbers = self._module(node, inputs[0])
        elif role in ("channelwise", "average", "add", "multiply", "cat", "flatten"):
            numbers = getattr(self, f"_{role}")(node, inputs)
        if numbers is None:
            what = {"input": "is a channel of the image", "constant": "meets a parameter that no layer owns"}
            reason = what.get(role, f"passes through {node_name(node)}, where channels cannot be removed")
            self._pin(inputs, reason)
            numbers = self._fresh(self._width(node))
            self._pinned += [(n, reason) for n in numbers]
        self.numbers[node] = numbers

    def result(self) -> Channels:
        """The channel numbers, each replaced by its class's representative."""
        find = self._find
        self.channels.count = len(self._parent)
        for number, reason in self._pinned:
            self.channels.pinned.setdefault(find(number), reason)
        for name, node, reads, gives in self._readers:
            reads_I, gives_O = (torch.tensor([find(n) for n in numbers]) for numbers in (reads, gives))
            self.channels.consumers.append(ConsumerLayer(name=name, node=node, reads_I=reads_I, gives_O=gives_O))
        for name, numbers in self._owners:
            self.channels.owners[name] = torch.tensor([find(n) for n in numbers])
        return self.channels

    def _module(self, node: fx.Node, source: fx.Node) -> list[int] | None:
        name, module, reads = str(node.target), self.traced.module(node), self.numbers[source]
        if isinstance(module, nn.Conv2d):
            gives = self._convolution(node, module, reads)
        elif isinstance(module, nn.Linear):
            gives = self._fresh(module.out_features) if len(self.shapes[source]) == 2 else None
        else:
            gives = reads
        if gives is None:
            return None
        if not self.traced.once(name):
            reason = f"reaches {name}, which is used several times or shares its weight"
            self._pinned += [(n, reason) for n in (*reads, *gives)]
        if gives is not reads and not (isinstance(module, nn.Conv2d) and module.groups > 1):
            self._readers.append((name, node, reads, gives))
        self._owners.append((name, gives))
        return gives

    def _convolution(self, node: fx.Node, conv: nn.Conv2d, reads: list[int]) -> list[int] | None:
        if len(self.shapes[node]) != 4:
            return None
        if conv.groups == 1:
            return self._fresh(conv.out_channels)
        if conv.groups == conv.in_channels:  # depthwise: each input channel and what is made of it go together
            return [n for n in reads for _ in range(conv.out_channels // conv.in_channels)]
        gives = self._fresh(conv.out_channels)
        # Groups of unequal size cannot be computed.
        self._pinned += [(n, f"is read or given by {node.target}, a grouped convolution") for n in (*reads, *gives)]
        return gives

    def _channelwise(self, node: fx.Node, inputs: Sequence[fx.Node]) -> list[int] | None:
        before, after = self.shapes[inputs[0]], self.shapes[node]
        if len(inputs) != 1 or len(before) < 2 or len(after) < 2 or before[:2] != after[:2]:
            return None
        if "mean" in node_name(node):
            dims = tree_flatten(node.kwargs.get("dim", node.args[1:2]))[0]
            if len(before) != 4 or not dims or any(d not in (2, 3, -1, -2) for d in dims):
                return None
        return self.numbers[inputs[0]]

    _average = _channelwise

    def _add(self, node: fx.Node, inputs: Sequence[fx.Node]) -> list[int] | None:
        shapes = [self.shapes[n] for n in inputs]
        if len(inputs) == 1:
            return self.numbers[inputs[0]] if shapes[0] == self.shapes[node] else None
        first, second = inputs
        if len(shapes[0]) != len(shapes[1]) or len(shapes[0]) < 2 or shapes[0][1] != shapes[1][1]:
            return None
        for a, b in zip(self.numbers[first], self.numbers[second], strict=True):
            self._unite(a, b)
        return self.numbers[first]

    _multiply = _add

    def _cat(self, node: fx.Node, inputs: Sequence[fx.Node]) -> list[int] | None:
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        parts = node.args[0] if node.args else node.kwargs.get("tensors")
        if axis != 1 or not isinstance(parts, list | tuple):
            return None
        if not all(isinstance(part, fx.Node) and part in self.numbers for part in parts):
            return None
        return [number for part in parts for number in self.numbers[part]]

    def _flatten(self, node: fx.Node, inputs: Sequence[fx.Node]) -> list[int] | None:
        before, after = self.shapes[inputs[0]], self.shapes[node]
        pixels = 1
        for side in before[2:]:
            pixels *= side
        if len(before) < 2 or after != (before[0], before[1] * pixels):
            return None
        if node_name(node) in ("view", "reshape"):
            sizes = node.args[1] if isinstance(node.args[1], list | tuple) else node.args[1:]
            # A number written out would not shrink along.
            if len(sizes) != 2 or sizes[1] != -1 or sizes[0] == -1:
                return None
        return [number for number in self.numbers[inputs[0]] for _ in range(pixels)]

    def _width(self, node: fx.Node) -> int:
        shape = self.shapes[node]
        return shape[1] if len(shape) > 1 else 1

    def _pin(self, nodes: Sequence[fx.Node], reason: str) -> None:
        self._pinned += [(number, reason) for node in nodes for number in self.numbers[node]]

    def _fresh(self, count: int) -> list[int]:
        start = len(self._parent)
        self._parent += range(start, start + count)
        return list(range(start, start + count))

    def _find(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def _unite(self, a: int, b: int) -> None:
        a, b = self._find(a), self._find(b)
        self._parent[max(a, b)] = min(a, b)
