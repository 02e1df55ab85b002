"""Finds the residual branches of a network: what is added to a stream, and could be left out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.pruning.channels.graph import Traced, node_name, trace

# What a factor may be pulled through, beside what the layer before it computes.
_LINEAR = (nn.Dropout, nn.Dropout2d, nn.Identity)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One summand of a sum that has a shorter way around it.

    Args:
        last: name of the BatchNorm, convolution or linear layer whose output is added.
        layers: names of the convolutions and linear layers in it, in the order of the graph.
    """

    last: str
    layers: tuple[str, ...]


def branches_of(model: nn.Module) -> list[Branch]:
    """The residual branches of a model. Raises BadOption where there are none, or it cannot be traced."""
    try:
        branches = residual_branches(model)
    except StarfireError as error:
        raise BadOption(f"the method needs the network's residual branches, and {error}") from None
    if not branches:
        raise BadOption("the method leaves out residual branches, and the network has none")
    return branches


def residual_branches(model: nn.Module) -> list[Branch]:
    """The branches of a network, in the order of its graph. Raises StarfireError where it cannot be traced.

    Of the two summands the one with more layers of its own is the branch. Left out are branches whose last layer is
    used elsewhere as well, or is followed by an activation.
    """
    traced = trace(model)
    order = {node: number for number, node in enumerate(traced.root.graph.nodes)}
    found = []
    for node in traced.root.graph.nodes:
        if traced.role(node) == "add" and len(node.all_input_nodes) == 2:
            first, second = node.all_input_nodes
            own = [_layers(traced, mine - other) for mine, other in _ways(first, second)]
            if len(own[0]) == len(own[1]):
                continue
            end, layers = (first, own[0]) if len(own[0]) > len(own[1]) else (second, own[1])
            last = _last_layer(traced, end)
            if last is not None and all(traced.once(str(layer.target)) for layer in layers):
                names = tuple(str(layer.target) for layer in sorted(layers, key=order.__getitem__))
                found.append(Branch(last=last, layers=names))
    return found


def _ways(first: fx.Node, second: fx.Node) -> list[tuple[set[fx.Node], set[fx.Node]]]:
    a, b = (_back(node) for node in (first, second))
    return [(a, b), (b, a)]


def _back(node: fx.Node) -> set[fx.Node]:
    """A node and all that it comes from."""
    seen: set[fx.Node] = set()
    todo = [node]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += current.all_input_nodes
    return seen


def _layers(traced: Traced, nodes: set[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if node.op == "call_module" and traced.role(node) in ("conv", "linear")]


def _last_layer(traced: Traced, node: fx.Node) -> str | None:
    """The layer whose weight and bias scale what a node gives, if it has no other user."""
    while len(node.users) == 1:
        if node.op == "call_module" and traced.role(node) in ("conv", "linear", "batchnorm"):
            module = traced.module(node)
            plain = next(module.children(), None) is None and module.weight is not None
            return str(node.target) if plain and traced.once(str(node.target)) else None
        if not _passes(traced, node):
            return None
        node = node.all_input_nodes[0]
    return None


def _passes(traced: Traced, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(traced.module(node), _LINEAR)
    return node_name(node) in ("dropout", "stochastic_depth", "drop_path") and len(node.all_input_nodes) == 1
