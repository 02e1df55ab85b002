"""What does a network compute, as a list of operations of which the loops can run some?

BatchNorm goes into the weights before it, addition and ReLU into the convolution whose output they change.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.graph import Traced, called, trace
from starfire_cli.sparse.convolution import Window, Work
from starfire_cli.sparse.loops import Finish
from starfire_cli.sparse.pool import StrungWeights
from starfire_cli.sparse.weights import LiveWeights

Shape = tuple[int, ...]
_RELU = {nn.ReLU, F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"}
_RELU6 = {nn.ReLU6, F.relu6}
_SUBTRACT, _DIVIDE = {operator.sub, torch.sub}, {operator.truediv, torch.div}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}

_OTHER = slice(None, None, 2)
_POINT = Window(size=(1, 1), stride=1, padding=(0, 0), dilation=(1, 1))


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A convolution or linear layer whose weights were taken out of the network, BatchNorm folded in.

    Args:
        name: of the layer.
        live: its weights; a linear layer's are (O, I, 1, 1).
        window: of the convolution; None for a linear layer.
        end: the BatchNorm's node, or the layer's own.
    """

    name: str
    live: LiveWeights
    window: Window | None
    end: fx.Node


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One thing to be done.

    Args:
        name: of the layer, or what is called.
        node: whose value this gives.
        inputs: the nodes whose values it takes; for `work` the map, and what is added.
        work: what a loop can do; None where torch does it.
        folded: for a convolution or linear layer.
    """

    name: str
    node: fx.Node
    inputs: tuple[fx.Node, ...]
    work: Work | None = None
    folded: Folded | None = None


class Network:
    """A traced network without the weights of its convolutions and linear layers, which are in `folded`.

    Args:
        model: to be read; not changed.

    Raises StarfireError where torch.fx cannot trace it.
    """

    def __init__(self, model: nn.Module) -> None:
        traced = trace(model)
        self.root = traced.root.float()
        _without_nothings(traced)
        self.folded: dict[fx.Node, Folded] = {}
        self.strung = StrungWeights()  # what plans for several shapes of image share
        self.dense: dict[fx.Node, Tensor] = {}
        for node in self.root.graph.nodes:
            folded = _folded(traced, node)
            if folded is not None:
                self.folded[node] = folded
        for node, folded in self.folded.items():
            for taken in {str(node.target), str(folded.end.target)}:
                if traced.once(taken):
                    self.root.set_submodule(taken, nn.Identity())
        for parameter in self.root.parameters():
            parameter.requires_grad_(False)
        self.ends = {folded.end: node for node, folded in self.folded.items()}

    @property
    def input(self) -> fx.Node:
        """The node that stands for the images."""
        return self._node("placeholder")

    @property
    def output(self) -> fx.Node:
        """The node that stands for what the network returns."""
        return self._node("output")

    def _node(self, op: str) -> fx.Node:
        nodes: list[fx.Node] = [node for node in self.root.graph.nodes if node.op == op]
        if len(nodes) != 1:
            raise StarfireError(f"the network has {len(nodes)} {op}s; sparse execution needs one")
        return nodes[0]

    def shapes(self, images: Shape) -> dict[fx.Node, Shape]:
        """The shape of every tensor in the network for such images (N, C, H, W); nothing is computed."""
        meta = _OnMeta(self)
        meta.run(torch.empty(images, device="meta"))
        return meta.found

    def operations(self, shapes: dict[fx.Node, Shape]) -> list[Operation]:
        """All operations in order, for maps of these shapes."""
        order = {node: i for i, node in enumerate(self.root.graph.nodes)}
        chains = {node: self._chain(node, folded, shapes, order) for node, folded in self.folded.items()}
        inside = {part for chain in chains.values() for part in chain.nodes}
        last = {chain.nodes[-1]: node for node, chain in chains.items()}
        thinned = {node: work for node in order if (work := self._thinning(node, shapes)) is not None}
        inside |= {_first(node) for node in thinned}
        intake = self._intake(shapes)
        inside |= set(intake.nodes)
        found: list[Operation] = []
        positive: set[fx.Node] = set()  # nothing in these maps is below zero
        for node in self.root.graph.nodes:
            if node is intake.nodes[-1]:
                found.append(Operation(name="input", node=node, inputs=(), work=intake.work))
            elif node in thinned:
                source = _first(_first(node))
                found.append(Operation(name=called(node), node=node, inputs=(source,), work=thinned[node]))
            elif node in last:
                start = last[node]
                folded, chain = self.folded[start], chains[start]
                inputs = (_first(start), *((chain.added,) if chain.added is not None else ()))
                work = None
                if folded.window is not None:
                    work = Work(window=folded.window, live=folded.live, finish=chain.finish, high=chain.high)
                found.append(Operation(name=folded.name, node=node, inputs=inputs, work=work, folded=folded))
                if chain.finish.low:
                    positive.add(node)
            elif node not in inside and node.op != "output":
                work = self._pooling(node, shapes, positive)
                if _kind(self.root, node) in _RELU | _RELU6 or work is not None:
                    positive.add(node)
                found.append(Operation(name=called(node), node=node, inputs=tuple(node.all_input_nodes), work=work))
        return found

    def _intake(self, shapes: dict[fx.Node, Shape]) -> _Intake:
        """The images, and what normalises them: mean and standard deviation of each channel, if they are that."""
        nodes = [self.input]
        C = shapes[self.input][1]
        scale, shift = torch.ones(C, dtype=torch.float64), torch.zeros(C, dtype=torch.float64)
        for kinds in (_SUBTRACT, _DIVIDE):
            user = _only_user(nodes[-1])
            if user is None or user.target not in kinds or len(user.args) != 2 or user.args[0] is not nodes[-1]:
                break
            constant = user.args[1]
            if not isinstance(constant, fx.Node) or constant.op != "get_attr" or len(constant.users) != 1:
                break
            value = attribute(self.root, str(constant.target))
            if tuple(value.shape) not in ((C, 1, 1), (1, C, 1, 1)):
                break
            value = value.detach().double().flatten()
            scale, shift = (scale, shift - value) if kinds is _SUBTRACT else (scale / value, shift / value)
            nodes += [constant, user]
        live = LiveWeights(
            shape=(C, 1, 1, 1),
            groups=C,
            alive=np.packbits(np.ones(C, np.bool_)),
            values=scale.float().numpy(),
            bias=shift.float().numpy(),
        )
        return _Intake(nodes=nodes, work=Work(window=_POINT, live=live, finish=Finish(), does="scale"))

    def _chain(self, node: fx.Node, folded: Folded, shapes: dict[fx.Node, Shape], order: dict[fx.Node, int]) -> _Chain:
        chain = [node, *([folded.end] if folded.end is not node else [])]
        if folded.window is None:
            return _Chain(nodes=chain, finish=Finish())
        added = None
        follower = _only_user(chain[-1])
        if follower is not None and _kind(self.root, follower) in _ADD and not follower.kwargs:
            added = self._other(follower, chain[-1], shapes, order)
            if added is not None:
                chain.append(follower)
                follower = _only_user(follower)
        kind = _kind(self.root, follower) if follower is not None else None
        low, high = kind in _RELU | _RELU6, kind in _RELU6
        if low and follower is not None:
            chain.append(follower)
        finish = Finish(add=added is not None, low=low, high=high)
        return _Chain(nodes=chain, finish=finish, added=added, high=6.0 if high else 0.0)

    def _other(
        self, add: fx.Node, own: fx.Node, shapes: dict[fx.Node, Shape], order: dict[fx.Node, int]
    ) -> fx.Node | None:
        """What is added to `own`, if the layer that gives `own` can do it: of two such layers the later one does."""
        if len(add.args) != 2:
            return None
        first, second = add.args
        other = second if first is own else first
        if not isinstance(other, fx.Node) or other is own or shapes.get(other) != shapes.get(own):
            return None
        rival = self.ends.get(other)
        is_rival = rival is not None and self.folded[rival].window is not None and len(other.users) == 1
        return None if is_rival and order[other] > order[own] else other

    def _thinning(self, node: fx.Node, shapes: dict[fx.Node, Shape]) -> Work | None:
        """Every other pixel, and channels of zeros around: the shortcut of the first ResNets, a 1x1 convolution."""
        if node.target is not F.pad or not isinstance(picked := node.args[0], fx.Node):
            return None
        if picked.target is not operator.getitem or len(picked.users) != 1:
            return None
        (source, places), around = picked.args, _around(node)
        if places != (slice(None), slice(None), _OTHER, _OTHER) or not isinstance(source, fx.Node) or around is None:
            return None
        C, K = shapes[source][1], shapes[node][1]
        weight = torch.zeros(K, C, 1, 1)
        weight[around : around + C, :, 0, 0] = torch.eye(C)
        window = Window(size=(1, 1), stride=2, padding=(0, 0), dilation=(1, 1))
        return Work(window=window, live=LiveWeights.of(weight, None, 1), finish=Finish())

    def _pooling(self, node: fx.Node, shapes: dict[fx.Node, Shape], positive: set[fx.Node]) -> Work | None:
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source is None or len(shapes.get(source, ())) != 4:
            return None
        pool = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        one = (1, 1)
        if (isinstance(pool, nn.AdaptiveAvgPool2d) and _pair(pool.output_size) == one) or (
            node.target is F.adaptive_avg_pool2d and len(node.args) == 2 and _pair(node.args[1]) == one
        ):
            C = shapes[source][1]
            live = LiveWeights.of(torch.ones(C, 1, 1, 1), None, C)
            return Work(window=_POINT, live=live, finish=Finish(), does="mean")
        if type(pool) is not nn.MaxPool2d or source not in positive or pool.ceil_mode or pool.return_indices:
            return None
        (R, S), (down, right) = _pair(pool.kernel_size), _pair(pool.stride)
        if down != right or down not in (1, 2):
            return None
        C = shapes[source][1]
        live = LiveWeights.of(torch.ones(C, 1, R, S), None, C)
        window = Window(size=(R, S), stride=down, padding=_pair(pool.padding), dilation=_pair(pool.dilation))
        return Work(window=window, live=live, finish=Finish(), does="max")


@dataclass(frozen=True, kw_only=True)
class _Intake:
    nodes: list[fx.Node]
    work: Work


@dataclass(frozen=True, kw_only=True)
class _Chain:
    nodes: Sequence[fx.Node]
    finish: Finish
    added: fx.Node | None = None
    high: float = 0.0


def _around(pad: fx.Node) -> int | None:
    """How many channels of zeros a node of `F.pad` puts before the others; None where it does anything else as well."""
    sizes: Any = pad.args[1] if len(pad.args) == 2 else None
    plain = {"value": (None, 0, 0.0), "mode": ("constant",)}
    if not all(pad.kwargs[name] in plain.get(name, ()) for name in pad.kwargs):
        return None
    if not isinstance(sizes, tuple | list) or len(sizes) != 6 or any(sizes[:4]):
        return None
    before, after = sizes[4:]
    return before if isinstance(before, int) and isinstance(after, int) and min(before, after) >= 0 else None


def _without_nothings(traced: Traced) -> None:
    """Take out what does nothing in eval mode: dropout, identities, empty sequences."""
    graph = traced.root.graph
    for node in list(graph.nodes):
        module = traced.module(node) if node.op == "call_module" else None
        idle = isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d) or (
            isinstance(module, nn.Sequential) and not len(module)
        )
        if idle or (node.target is F.dropout and False in (*node.args[2:], node.kwargs.get("training"))):
            node.replace_all_uses_with(_first(node))
            graph.erase_node(node)
    traced.root.recompile()


def _folded(traced: Traced, node: fx.Node) -> Folded | None:
    role = traced.role(node)
    if role not in ("conv", "linear") or node.op != "call_module":
        return None
    layer = traced.module(node)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight, bias = layer.weight.detach().double(), None if layer.bias is None else layer.bias.detach().double()
    if isinstance(layer, nn.Linear):
        live = LiveWeights.of(weight[:, :, None, None].float(), None if bias is None else bias.float(), 1)
        return Folded(name=str(node.target), live=live, window=None, end=node)
    stride = _pair(layer.stride)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or stride not in ((1, 1), (2, 2)):
        return None
    end = node
    norm = _only_user(node)
    if norm is not None and traced.role(norm) == "batchnorm" and type(traced.module(norm)) is nn.BatchNorm2d:
        end = norm
        weight, bias = _with(traced.module(norm), weight, bias)
    window = Window(
        size=_pair(layer.kernel_size), stride=stride[0], padding=_pair(layer.padding), dilation=_pair(layer.dilation)
    )
    live = LiveWeights.of(weight.float(), None if bias is None else bias.float(), layer.groups)
    return Folded(name=str(node.target), live=live, window=window, end=end)


def _with(norm: Any, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the BatchNorm behind it folded in."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = torch.zeros_like(scale) if norm.bias is None else norm.bias.detach().double()
    before = torch.zeros_like(scale) if bias is None else bias
    return weight * scale[:, None, None, None], (before - norm.running_mean.double()) * scale + shift


def _kind(root: fx.GraphModule, node: fx.Node) -> Any:
    """The module's type, the function, or the method's name."""
    return type(root.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _first(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def attribute(root: Any, path: str) -> Any:
    """What a `get_attr` node stands for."""
    for name in path.split("."):
        root = getattr(root, name)
    return root


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(second)


class _OnMeta(fx.Interpreter):
    """Runs a network on tensors without values."""

    def __init__(self, network: Network) -> None:
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
            (value, *_) = self.fetch_args_kwargs_from_env(n)[0]
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
