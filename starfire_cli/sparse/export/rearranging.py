"""Operations that only move numbers about, or do nothing: known by what torch does to the numbers' indices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from starfire_cli.sparse.export.buffers import Value, rearranged
from starfire_cli.sparse.export.lowering import Lowering, call
from starfire_cli.sparse.export.operators import first_value, function_name, module_of

_FUNCTIONS = {
    "flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "chunk", "split", "getitem", "pad",
    "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "contiguous", "clone", "detach", "stack", "unbind",
    "tensor_split", "flip", "roll", "movedim", "interpolate",
}  # fmt: skip
_MODULES = {
    "Flatten", "Unflatten", "ChannelShuffle", "PixelShuffle", "PixelUnshuffle", "ZeroPad2d", "ReflectionPad2d",
    "ReplicationPad2d", "CircularPad2d", "Permute", "Upsample",
}  # fmt: skip


def rearrange(lowering: Lowering, node: fx.Node) -> Any:
    """The value of an operation that moves the numbers of one map about."""
    values = [lowering.values[n] for n in node.all_input_nodes]
    leaves = torch.utils._pytree.tree_leaves(values)
    buffers = {leaf.buffer for leaf in leaves if isinstance(leaf, Value)}
    if len(buffers) != 1 or any(isinstance(leaf, Tensor) for leaf in leaves):
        return None
    module, name = module_of(lowering, node), function_name(node)
    if _does_nothing(module, name, node):
        return first_value(lowering, node)
    if not _moves(module, name, node):
        return None
    with torch.no_grad():
        result = call(lowering, node, lambda value: value.indices().double())  # not all of them take whole numbers
    return rearranged(result, buffers.pop())


def _does_nothing(module: nn.Module | None, name: str, node: fx.Node) -> bool:
    if name == "stochastic_depth":
        return not node.kwargs.get("training", node.args[3] if len(node.args) > 3 else True)
    return type(module).__name__ in ("StochasticDepth", "DropPath", "Dropout3d", "AlphaDropout")


def _moves(module: nn.Module | None, name: str, node: fx.Node) -> bool:
    if module is not None:
        return type(module).__name__ in _MODULES and getattr(module, "mode", "nearest") in ("nearest", "nearest-exact")
    if name == "pad":
        mode, value = (
            node.kwargs.get(key, node.args[place] if len(node.args) > place else None)
            for place, key in ((2, "mode"), (3, "value"))
        )
        return mode not in (None, "constant") or not value
    if name == "interpolate":
        mode = node.kwargs.get("mode", node.args[3] if len(node.args) > 3 else "nearest")
        return mode in ("nearest", "nearest-exact")
    return name in _FUNCTIONS
