"""Reads a network as operations: convolutions and BatchNorm for the loops, segments of all else for torch."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.channels.graph import LeafTracer, module_role
from starfire_cli.sparse.folding import kind, only_user
from starfire_cli.sparse.training.geometry import Pair

RELU: set[object] = {nn.ReLU, F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"}
_ADD: set[object] = {operator.add, operator.iadd, torch.add, "add", "add_"}


@dataclass(frozen=True, kw_only=True)
class ConvolutionNode:
    """A convolution.

    Args:
        node: whose value it gives.
        source: its input.
        name: of the module.
    """

    node: fx.Node
    source: fx.Node
    name: str


@dataclass(frozen=True, kw_only=True)
class NormNode:
    """A BatchNorm with what follows it.

    Args:
        node: whose value it gives, the last of those it stands for.
        source: its input.
        name: of the module.
        other: what is added behind it.
        relu: whether ReLU follows.
    """

    node: fx.Node
    source: fx.Node
    name: str
    other: fx.Node | None = None
    relu: bool = False


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Operations that torch does.

    Args:
        nodes: in order.
        inputs: nodes before them whose values they take.
        outputs: those of `nodes` whose values are used behind them.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


NetworkNode = ConvolutionNode | NormNode | Segment


@dataclass(frozen=True, kw_only=True)
class TracedTraining:
    """A traced network as operations.

    Args:
        root: the graph, with the network's own modules.
        input: the images.
        output: the result.
        operations: in order.
        last_use: of each node, the number of the last operation that reads it.
    """

    root: fx.GraphModule
    input: fx.Node
    output: fx.Node
    operations: tuple[NetworkNode, ...]
    last_use: dict[fx.Node, int]


def read(model: nn.Module, apart: Collection[str] = (), in_torch: Collection[str] = ()) -> TracedTraining:
    """Read a network in the mode that it is in.

    Args:
        model: the network.
        apart: names of BatchNorm layers behind which nothing is added by their loops.
        in_torch: names of layers that torch computes.

    Raises StarfireError with the reason where it cannot be read.
    """
    hooked = [
        name
        for name, m in model.named_modules()
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    ]
    if hooked:
        raise StarfireError(f"{hooked[0] or 'the network'} has hooks, which sparse compute would not call")
    try:
        graph = LeafTracer().trace(model)
    except Exception as error:  # noqa: BLE001 - tracing runs a user's code
        raise StarfireError(f"torch.fx cannot trace the model: {str(error).splitlines()[0]}") from None
    _bring_items_near(graph)
    root = fx.GraphModule(model, graph)
    _skip_identities(root)
    images = [node for node in graph.nodes if node.op == "placeholder"]
    end = next(node for node in graph.nodes if node.op == "output")
    if len(images) != 1 or not isinstance(end.args[0], fx.Node):
        raise StarfireError("the network has more than one input or output")
    operations = tuple(_operations(root, apart, in_torch))
    if not any(isinstance(o, ConvolutionNode) for o in operations):
        raise StarfireError("the network has no convolution that the loops can do")
    last_use: dict[fx.Node, int] = {}
    for number, operation in enumerate(operations):
        for node in inputs_of(operation):
            last_use[node] = number
    last_use[end.args[0]] = len(operations)
    return TracedTraining(root=root, input=images[0], output=end.args[0], operations=operations, last_use=last_use)


def inputs_of(operation: NetworkNode) -> tuple[fx.Node, ...]:
    """The nodes whose values an operation takes."""
    if isinstance(operation, Segment):
        return operation.inputs
    other = operation.other if isinstance(operation, NormNode) else None
    return (operation.source,) if other is None else (operation.source, other)


def padding_of(module: nn.Conv2d) -> Pair | None:
    """Rows and columns of zeros on both sides; None where it is other padding, or more on one side."""
    if module.padding_mode != "zeros":
        return None
    if isinstance(module.padding, str):
        both = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        rows, columns = both if module.padding == "same" else (0, 0)
        return None if rows % 2 or columns % 2 else (rows // 2, columns // 2)
    rows, columns = module.padding
    return rows, columns


def _bring_items_near(graph: fx.Graph) -> None:
    """Move `values[i]` behind what gives `values`, so that single tensors go from one part to another."""
    for node in list(graph.nodes):
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and isinstance(node.args[1], int):
            node.args[0].append(node)


def _skip_identities(root: fx.GraphModule) -> None:
    """Take modules that return what they get out of the graph: a map need not leave the loops for them."""
    for node in list(root.graph.nodes):
        if node.op == "call_module" and len(node.all_input_nodes) == 1 and len(node.args) == 1:
            module = root.get_submodule(str(node.target))
            if type(module) is nn.Identity or (type(module) is nn.Sequential and not len(module)):
                node.replace_all_uses_with(node.all_input_nodes[0])
                root.graph.erase_node(node)


def _operations(root: fx.GraphModule, apart: Collection[str], in_torch: Collection[str]) -> Iterator[NetworkNode]:
    """All operations; a BatchNorm stands where the last of the nodes stands that it takes in."""
    norms: dict[fx.Node, NormNode] = {}
    inside: set[fx.Node] = set()
    for node in root.graph.nodes:
        norm = None
        if str(node.target) not in in_torch:
            norm = _norm(root, node, inside, adds=str(node.target) not in apart)
        if norm is not None:
            norms[norm.node] = norm
            inside |= _between(node, norm.node)
    waiting: list[fx.Node] = []
    for node in root.graph.nodes:
        if node.op in ("placeholder", "output") or (node in inside and node not in norms):
            continue
        found = norms.get(node) or (None if str(node.target) in in_torch else _convolution(root, node))
        if found is None:
            waiting.append(node)
            continue
        if waiting:
            yield _segment(waiting)
            waiting = []
        yield found
    if waiting:
        yield _segment(waiting)


def _convolution(root: fx.GraphModule, node: fx.Node) -> ConvolutionNode | None:
    if node.op != "call_module":
        return None
    module = root.get_submodule(str(node.target))
    if module_role(module) != "conv" or not isinstance(module, nn.Conv2d) or len(node.all_input_nodes) != 1:
        return None
    if padding_of(module) is None:
        return None
    return ConvolutionNode(node=node, source=node.all_input_nodes[0], name=str(node.target))


def _norm(root: fx.GraphModule, node: fx.Node, taken: set[fx.Node], *, adds: bool) -> NormNode | None:
    """The BatchNorm that `node` calls, with an addition and ReLU behind it that no other has taken."""
    if node.op != "call_module":
        return None
    module = root.get_submodule(str(node.target))
    if type(module) is not nn.BatchNorm2d or module_role(module) != "batchnorm" or len(node.all_input_nodes) != 1:
        return None
    last, other, relu = node, None, False
    follower = only_user(last)
    plain = follower is not None and len(follower.args) == 2 and not follower.kwargs and follower not in taken
    if follower is not None and adds and plain and kind(root, follower) in _ADD:
        left, right = follower.args
        added = right if left is last else left
        if isinstance(added, fx.Node) and added is not last:
            last, other = follower, added
            follower = only_user(last)
    if follower is not None and kind(root, follower) in RELU:
        last, relu = follower, True
    return NormNode(node=last, source=node.all_input_nodes[0], name=str(node.target), other=other, relu=relu)


def _between(first: fx.Node, last: fx.Node) -> set[fx.Node]:
    found, node = {first}, first
    while node is not last:
        follower = only_user(node)
        assert follower is not None
        node = follower
        found.add(node)
    return found


def _segment(nodes: list[fx.Node]) -> Segment:
    own = set(nodes)
    inputs = dict.fromkeys(i for node in nodes for i in node.all_input_nodes if i not in own)
    outputs = [node for node in nodes if any(user not in own for user in node.users)]
    return Segment(nodes=tuple(nodes), inputs=tuple(inputs), outputs=tuple(outputs))
