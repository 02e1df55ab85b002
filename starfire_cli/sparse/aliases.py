"""Alias check: finds maps that are changed in place where others see them, which the loops must not lay out anew."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.channels.graph import Traced, fitting_image

_IN_PLACE: set[object] = {
    getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv", "ipow", "setitem")
} | {"__setitem__"}
_NEW = ("conv", "linear", "batchnorm", "channelwise", "average", "add", "multiply", "cat")  # give a tensor of their own
_NEW_METHODS = ("clone", "add", "sub", "mul", "relu", "sigmoid", "tanh", "mean")
_AS_IT_IS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout)


@torch.no_grad()
def check_reading(traced: Traced) -> None:
    """Raise StarfireError where torch.fx reads the model wrong: `x += y` is read as `x = x + y`."""
    try:
        image = fitting_image(traced)
        expected, found = traced.model(image.clone()), traced.root(image.clone())
    except Exception:  # noqa: BLE001 - it takes another kind of image; nothing can be said
        return
    if not isinstance(expected, Tensor):
        return
    rounding = 1e-6 if expected.dtype == torch.float64 else 1e-4
    least = rounding * float(expected.abs().nan_to_num().max()) if expected.numel() else 0.0
    if not torch.allclose(expected, found, rtol=rounding, atol=least, equal_nan=True):
        raise StarfireError(
            "torch.fx reads this model as something else, most likely since `x += y` or `x *= y` changes what another "
            "name still refers to; with `x = x + y` it can be read"
        )


def mutates_aliases(traced: Traced) -> bool:
    """Whether an operation changes a tensor in place that anything else may read."""
    return any(_in_place(traced, node) and not _its_own(traced, node) for node in traced.root.graph.nodes)


def _in_place(traced: Traced, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = traced.module(node)
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _AS_IT_IS)
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.op not in ("call_method", "call_function"):
        return False
    flagged = node.kwargs.get("inplace") or any(value is True for value in node.args[1:])  # F.relu(x, True)
    named = name.endswith("_") and not name.startswith("__")
    return bool(flagged) or named or node.target in _IN_PLACE or "out" in node.kwargs


def _its_own(traced: Traced, node: fx.Node) -> bool:
    """Whether the tensor that `node` changes was made for it alone."""
    if "out" in node.kwargs or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    changed = node.args[0]
    if len(changed.users) > 1 or changed.op == "placeholder":
        return False
    if _in_place(traced, changed):
        return _its_own(traced, changed)
    if changed.op == "call_method":
        return changed.target in _NEW_METHODS
    if changed.op == "call_module" and isinstance(traced.module(changed), _AS_IT_IS):
        return isinstance(changed.args[0], fx.Node) and _made_for(traced, changed)
    return traced.role(changed) in _NEW


def _made_for(traced: Traced, same: fx.Node) -> bool:
    """Whether the input of `same`, which returns it unchanged, was made for it alone."""
    source = same.args[0]
    assert isinstance(source, fx.Node)
    return len(source.users) == 1 and source.op != "placeholder" and traced.role(source) in _NEW
