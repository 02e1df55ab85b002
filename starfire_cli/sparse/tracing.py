"""Reads a network as a list of operations, some of which the loops can run.

BatchNorm goes into the weights before it, addition and ReLU into the convolution whose output they change.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.channels.graph import node_name, trace
from starfire_cli.sparse.aliases import check_reading, mutates_aliases
from starfire_cli.sparse.convolution import Work
from starfire_cli.sparse.folding import FoldedLayer, first, folded, kind, only_user, remove_noops
from starfire_cli.sparse.loops import Finish
from starfire_cli.sparse.patterns import Shape, intake, pooling, subsampling
from starfire_cli.sparse.pool import LoopWeightsCache

_RELU = {nn.ReLU, F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"}
_RELU6 = {nn.ReLU6, F.relu6}
_IN_PLACE = {operator.iadd, "add_"}
_ADD = {operator.add, torch.add, "add"} | _IN_PLACE


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of the network.

    Args:
        name: of the layer, or of the node.
        node: whose value this gives.
        inputs: the nodes whose values it takes; for `work` the map, and what is added.
        work: what a loop can do; None where torch does it.
        folded: for a convolution or linear layer.
        in_torch: whether torch must do a convolution, whatever is faster.
    """

    name: str
    node: fx.Node
    inputs: tuple[fx.Node, ...]
    work: Work | None = None
    folded: FoldedLayer | None = None
    in_torch: bool = False


class TracedNetwork:
    """A traced network without the weights of its convolutions and linear layers, which are in `folded`.

    Args:
        model: to be read; not changed.

    Raises StarfireError where torch.fx cannot trace it.
    """

    def __init__(self, model: nn.Module) -> None:
        exact = any(parameter.dtype == torch.float64 for parameter in model.parameters())
        traced = trace(
            model, torch.float64 if exact else torch.float32
        )  # a copy in float64 would be the peak of memory
        check_reading(traced)
        self.in_loops = not mutates_aliases(traced)  # else everything is left to torch
        self.root = traced.root.float()
        remove_noops(traced)
        self.folded: dict[fx.Node, FoldedLayer] = {}
        self.weights_cache = LoopWeightsCache()  # what plans for several shapes of image share
        self.dense: dict[fx.Node, Tensor] = {}
        for node in self.root.graph.nodes:
            found = folded(traced, node)
            if found is not None:
                self.folded[node] = found
                if traced.once(str(node.target)):  # the copy's weights go one by one, not all at the end
                    traced.module(node).weight = nn.Parameter(torch.empty(0), requires_grad=False)
        for node, layer in self.folded.items():
            for taken in {str(node.target), str(layer.end.target)}:
                if traced.once(taken):
                    self.root.set_submodule(taken, nn.Identity())
        for parameter in self.root.parameters():
            parameter.requires_grad_(False)
        assert self.input is not self.output  # both are there
        self.ends = {layer.end: node for node, layer in self.folded.items()}

    @property
    def input(self) -> fx.Node:
        """The node of the images."""
        return self._node("placeholder")

    @property
    def output(self) -> fx.Node:
        """The node of the network's result."""
        return self._node("output")

    def _node(self, op: str) -> fx.Node:
        nodes: list[fx.Node] = [node for node in self.root.graph.nodes if node.op == op]
        if len(nodes) != 1:
            raise StarfireError(f"the network has {len(nodes)} inputs; sparse execution takes networks with one")
        return nodes[0]

    def shapes(self, images: Shape) -> dict[fx.Node, Shape]:
        """The shape of every tensor in the network for such images (N, C, H, W); nothing is computed."""
        meta = _OnMeta(self)
        meta.run(torch.empty(images, device="meta"))
        return meta.found

    def operations(self, shapes: dict[fx.Node, Shape], in_torch: Collection[fx.Node] = ()) -> list[Operation]:
        """All operations in order, for maps of these shapes; those of the nodes `in_torch` are left to torch."""
        order = {node: i for i, node in enumerate(self.root.graph.nodes)}
        chains = {node: self._chain(node, folded, shapes, order) for node, folded in self.folded.items()}
        inside = {part for chain in chains.values() for part in chain.nodes}
        last = {chain.nodes[-1]: node for node, chain in chains.items()}
        possible = [node for node in order if self.in_loops and node not in in_torch]
        thinned = {node: work for node in possible if (work := subsampling(node, shapes)) is not None}
        inside |= {first(node) for node in thinned}
        taken = intake(self.root, self.input, shapes)
        inside |= set(taken.nodes)
        found: list[Operation] = []
        positive: set[fx.Node] = set()  # nothing in these maps is below zero
        for node in self.root.graph.nodes:
            if node is taken.nodes[-1]:
                found.append(Operation(name="input", node=node, inputs=(), work=taken.work))
            elif node in thinned:
                source = first(first(node))
                found.append(Operation(name=node_name(node), node=node, inputs=(source,), work=thinned[node]))
            elif node in last:
                start = last[node]
                folded, chain = self.folded[start], chains[start]
                inputs = (first(start), *((chain.added,) if chain.added is not None else ()))
                work = None
                if folded.window is not None:
                    work = Work(window=folded.window, live=folded.live, finish=chain.finish, high=chain.high)
                apart = node in in_torch
                found.append(
                    Operation(name=folded.name, node=node, inputs=inputs, work=work, folded=folded, in_torch=apart)
                )
                if chain.finish.low:
                    positive.add(node)
            elif node not in inside and node.op != "output":
                work = pooling(self.root, node, shapes, positive) if node not in in_torch else None
                if kind(self.root, node) in _RELU | _RELU6 or (work is not None and first(node) in positive):
                    positive.add(node)
                found.append(Operation(name=node_name(node), node=node, inputs=tuple(node.all_input_nodes), work=work))
        return found

    def _chain(
        self, node: fx.Node, layer: FoldedLayer, shapes: dict[fx.Node, Shape], order: dict[fx.Node, int]
    ) -> _Chain:
        chain = [node, *([layer.end] if layer.end is not node else [])]
        if layer.window is None or not self.in_loops:
            return _Chain(nodes=chain, finish=Finish())
        added = None
        follower = only_user(chain[-1])
        if follower is not None and kind(self.root, follower) in _ADD and not follower.kwargs:
            added = self._other(follower, chain[-1], shapes, order)
            if added is not None:
                chain.append(follower)
                follower = only_user(follower)
        does = kind(self.root, follower) if follower is not None else None
        low, high = does in _RELU | _RELU6, does in _RELU6
        if low and follower is not None:
            chain.append(follower)
        finish = Finish(add=added is not None, low=low, high=high)
        return _Chain(nodes=chain, finish=finish, added=added, high=6.0 if high else 0.0)

    def _other(
        self, add: fx.Node, own: fx.Node, shapes: dict[fx.Node, Shape], order: dict[fx.Node, int]
    ) -> fx.Node | None:
        """The summand added to `own`, if the layer of `own` can add it: of two such layers the later one does."""
        if len(add.args) != 2:
            return None
        left, right = add.args
        other = right if left is own else left
        if not isinstance(other, fx.Node) or other is own or shapes.get(other) != shapes.get(own):
            return None
        if add.target in _IN_PLACE and other is left and len(other.users) > 1:  # the others see the sum
            return None
        rival = self.ends.get(other)
        is_rival = rival is not None and self.folded[rival].window is not None and len(other.users) == 1
        return None if is_rival and order[other] > order[own] else other


@dataclass(frozen=True, kw_only=True)
class _Chain:
    nodes: Sequence[fx.Node]
    finish: Finish
    added: fx.Node | None = None
    high: float = 0.0


class _OnMeta(fx.Interpreter):
    """Runs a network on tensors without values."""

    def __init__(self, network: TracedNetwork) -> None:
        import copy

        super().__init__(copy.deepcopy(network.root).to("meta"))
        names = {node.name: folded for node, folded in network.folded.items()}
        ends = {folded.end.name for folded in network.folded.values() if folded.end.name not in names}
        self._folded, self._ends = names, ends
        self._nodes = {node.name: node for node in network.root.graph.nodes}
        self.found: dict[fx.Node, Shape] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._folded:
            folded = self._folded[n.name]
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            value = (*args, *kwargs.values())[0]
            weight = torch.empty(folded.live.shape, device="meta")
            w = folded.window
            if w is None:
                result: Any = F.linear(value, weight[:, :, 0, 0])
            else:
                groups = folded.live.groups
                result = F.conv2d(value, weight, None, w.stride, w.padding, w.dilation, groups)
        elif n.name in self._ends:
            result = self.fetch_args_kwargs_from_env(n)[0][0]
        else:
            result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[self._nodes[n.name]] = tuple(result.shape)
        return result
