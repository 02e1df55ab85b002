"""Layers that follow one another in a network's graph: BatchNorm behind a weight, linear layers in a row."""

from __future__ import annotations

from torch import fx, nn

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.channels.graph import Traced, trace


def batchnorms_after(model: nn.Module) -> dict[str, str]:
    """For each layer whose output goes through a BatchNorm and nowhere else: that module's name, by the layer's key.

    Empty where torch.fx cannot trace the model.
    """
    found = {}
    for traced, node in _layers(model):
        user = _only_user(node)
        if user is not None and traced.role(user) == "batchnorm" and traced.once(str(user.target)):
            found[f"{node.target}.weight"] = str(user.target)
    return found


def linear_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """The names of linear layers with nothing between them that mixes neurons: (the earlier, the later).

    Empty where torch.fx cannot trace the model.
    """
    found = []
    for traced, node in _layers(model):
        if traced.role(node) != "linear":
            continue
        user = _only_user(node)
        while user is not None and traced.role(user) == "channelwise":
            user = _only_user(user)
        if user is not None and traced.role(user) == "linear" and traced.once(str(user.target)):
            first, second = traced.module(node), traced.module(user)
            assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
            if first.out_features == second.in_features:
                found.append((str(node.target), str(user.target)))
    return found


def _layers(model: nn.Module) -> list[tuple[Traced, fx.Node]]:
    """The calls of convolutions and linear layers that are called once."""
    try:
        traced = trace(model)
    except StarfireError:
        return []
    nodes = (node for node in traced.root.graph.nodes if node.op == "call_module")
    return [(traced, x) for x in nodes if traced.role(x) in ("conv", "linear") and traced.once(str(x.target))]


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None
