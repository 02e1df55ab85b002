"""The weights of a network once BatchNorm is folded in and operations without effect are gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from starfire_cli.pruning.channels.graph import Traced
from starfire_cli.sparse.convolution import SlidingWindow
from starfire_cli.sparse.weights import LiveWeights


@dataclass(frozen=True, kw_only=True)
class FoldedLayer:
    """A convolution or linear layer whose weights were taken out of the network, BatchNorm folded in.

    Args:
        name: of the layer.
        live: its weights; a linear layer's are (O, I, 1, 1).
        window: of the convolution; None for a linear layer.
        end: the BatchNorm's node, or the layer's own.
    """

    name: str
    live: LiveWeights
    window: SlidingWindow | None
    end: fx.Node


def remove_noops(traced: Traced) -> None:
    """Remove operations that do nothing in eval mode: dropout, identities, empty sequences."""
    graph = traced.root.graph
    for node in list(graph.nodes):
        module = traced.module(node) if node.op == "call_module" else None
        idle = isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d) or (
            isinstance(module, nn.Sequential) and not len(module)
        )
        if idle or (node.target is F.dropout and False in (*node.args[2:], node.kwargs.get("training"))):
            node.replace_all_uses_with(first(node))
            graph.erase_node(node)
    traced.root.recompile()


def folded(traced: Traced, node: fx.Node) -> FoldedLayer | None:
    """The layer that `node` calls, if a loop or torch can do it from its weights alone."""
    role = traced.role(node)
    if role not in ("conv", "linear") or node.op != "call_module":
        return None
    layer = traced.module(node)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight, bias = layer.weight.detach().double(), None if layer.bias is None else layer.bias.detach().double()
    if isinstance(layer, nn.Linear):
        live = LiveWeights.of(weight[:, :, None, None].float(), None if bias is None else bias.float(), 1)
        return FoldedLayer(name=str(node.target), live=live, window=None, end=node)
    stride = pair(layer.stride)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or stride not in ((1, 1), (2, 2)):
        return None
    end = node
    norm = only_user(node)
    if norm is not None and traced.role(norm) == "batchnorm" and type(traced.module(norm)) is nn.BatchNorm2d:
        end = norm
        weight, bias = _with(traced.module(norm), weight, bias)
    window = SlidingWindow(
        size=pair(layer.kernel_size), stride=stride[0], padding=pair(layer.padding), dilation=pair(layer.dilation)
    )
    live = LiveWeights.of(weight.float(), None if bias is None else bias.float(), layer.groups)
    return FoldedLayer(name=str(node.target), live=live, window=window, end=end)


def _with(norm: Any, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the BatchNorm behind it folded in."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = torch.zeros_like(scale) if norm.bias is None else norm.bias.detach().double()
    before = torch.zeros_like(scale) if bias is None else bias
    return weight * scale[:, None, None, None], (before - norm.running_mean.double()) * scale + shift


def kind(root: fx.GraphModule, node: fx.Node) -> Any:
    """The module's type, the function, or the method's name."""
    return type(root.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def only_user(node: fx.Node) -> fx.Node | None:
    """The only node that reads this node's value; None if there is not just one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def first(node: fx.Node) -> fx.Node:
    """The first node that this one reads."""
    return node.all_input_nodes[0]


def attribute(root: Any, path: str) -> Any:
    """The value of a `get_attr` node."""
    for name in path.split("."):
        root = getattr(root, name)
    return root


def pair(value: Any) -> tuple[int, int]:
    """A number for each axis, from one number or two."""
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(second)
