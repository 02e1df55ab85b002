"""The operations beside convolutions that have loops in an export: activations, sums, products and pools."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from starfire_cli.sparse.convolution import Work
from starfire_cli.sparse.export.activations import activation
from starfire_cli.sparse.export.buffers import Buffer, Value
from starfire_cli.sparse.export.jobs import convolving, moving, pointing, pooling
from starfire_cli.sparse.export.lowering import Lowering, call
from starfire_cli.sparse.export.odd_loops import Combination
from starfire_cli.sparse.loops import Finish
from starfire_cli.sparse.patterns import POINT
from starfire_cli.sparse.weights import LiveWeights

_POOLS = {"max_pool2d": True, "adaptive_max_pool2d": True, "avg_pool2d": False, "adaptive_avg_pool2d": False}
_POOL_MODULES: dict[type[nn.Module], bool] = {
    nn.MaxPool2d: True,
    nn.AdaptiveMaxPool2d: True,
    nn.AvgPool2d: False,
    nn.AdaptiveAvgPool2d: False,
}
_COMBINATIONS: dict[str, Combination] = {
    **dict.fromkeys(("add", "iadd", "add_"), "add"),
    **dict.fromkeys(("sub", "isub", "sub_"), "sub"),
    **dict.fromkeys(("mul", "imul", "mul_"), "mul"),
}


def function_name(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))


def module_of(lowering: Lowering, node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    return lowering.network.root.get_submodule(str(node.target)) if node.op == "call_module" else None


def first_value(lowering: Lowering, node: fx.Node) -> Any:
    """The value of the first argument."""
    given = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    return lowering.values.get(given) if isinstance(given, fx.Node) else None


def _pointwise(lowering: Lowering, node: fx.Node, value: Value, **how: Any) -> Value:
    """The value of a job that treats each number by itself, whatever order they are in."""
    name = node.name
    if not value.is_whole:
        value = _copied(lowering, node, value)
    source = value.buffer
    writes = Buffer(name=name, channels=source.channels, pixels=source.pixels)
    lowering.jobs.append(pointing(name, writes, source, **how))
    return Value(buffer=writes, shape=value.shape, index=value.index)


def activate(lowering: Lowering, node: fx.Node) -> Any:
    """Activation functions."""
    value, module = first_value(lowering, node), module_of(lowering, node)
    if not isinstance(value, Value):
        return None
    options = dict(node.kwargs)
    if module is None and node.args[1:]:
        if function_name(node) not in ("relu", "relu6", "silu", "hardswish", "hardsigmoid") or len(node.args) > 2:
            return None
        options["inplace"] = node.args[1]
    found = activation(module, function_name(node), options)
    return None if found is None else _pointwise(lowering, node, value, activation=found)


def combine(lowering: Lowering, node: fx.Node) -> Any:
    """Sums, differences and products of two maps, or of a map and a constant."""
    how = _COMBINATIONS.get(function_name(node))
    divides = function_name(node) in ("truediv", "itruediv", "div", "div_")
    if node.op == "call_module" or (how is None and not divides) or len(node.args) != 2 or node.kwargs:
        return None
    left, right = (lowering.values[arg] if isinstance(arg, fx.Node) else arg for arg in node.args)
    if isinstance(left, Value) and isinstance(right, Value):
        return None if divides or how is None else _both(lowering, node, how, left, right)
    if isinstance(right, Value):
        if how not in ("add", "mul"):
            return None
        left, right = right, left
    return _with_constant(lowering, node, "div" if divides else str(how), left, right)


def _both(lowering: Lowering, node: fx.Node, how: Combination, left: Value, right: Value) -> Value | None:
    if left.shape == right.shape:
        alike = left.buffer.shape == right.buffer.shape and torch.equal(left.indices(), right.indices())
        if not alike:
            left, right = (_copied(lowering, node, value) for value in (left, right))
        if not left.is_whole:
            return None
        return _pointwise(lowering, node, left, combine=how, other=right.buffer)
    if how != "sub" and len(left.shape) == len(right.shape) == 4 and left.shape[2:] == (1, 1):
        left, right = right, left
    if len(left.shape) != 4 or right.shape != (*left.shape[:2], 1, 1):
        return None
    one, other = lowering.map(left, node.name), lowering.map(right, node.name)
    return _pointwise(lowering, node, Value(buffer=one, shape=left.shape), combine=how, other=other)


def _copied(lowering: Lowering, node: fx.Node, value: Value) -> Value:
    """The value in order, in a map of its own shape."""
    buffer = lowering.buffer(node.name, value.shape)
    if value.index is None and value.buffer.shape == buffer.shape:
        return value
    lowering.jobs.append(moving(node.name, buffer, value))
    return Value(buffer=buffer, shape=value.shape)


def _with_constant(lowering: Lowering, node: fx.Node, how: str, value: Any, constant: Any) -> Value | None:
    """A map and a number, or a number a channel."""
    if not isinstance(value, Value) or not isinstance(constant, int | float | Tensor):
        return None
    number = torch.as_tensor(constant).detach().double()
    fits = value.is_map and tuple(number.shape)[-3:] == (value.shape[1], 1, 1) and number.numel() == value.shape[1]
    if number.numel() > 1 and not fits:
        return None
    each = number.flatten().numpy() * np.ones(value.buffer.channels)
    one, zero = np.ones_like(each), np.zeros_like(each)
    scale, shift = {"add": (one, each), "sub": (one, -each), "mul": (each, zero), "div": (1 / each, zero)}[how]
    return _pointwise(lowering, node, value, affine=(scale.astype(np.float32), shift.astype(np.float32)))


def normalise(lowering: Lowering, node: fx.Node) -> Any:
    """Batch normalisation with no convolution before it, or with an activation behind it (timm's BatchNormAct2d)."""
    value, norm = first_value(lowering, node), module_of(lowering, node)
    if (
        not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        or not isinstance(value, Value)
        or norm.running_var is None
    ):
        return None
    after = None
    if type(norm).__name__ == "BatchNormAct2d" and isinstance(norm.drop, nn.Identity):
        act = norm.get_submodule("act")
        after = activation(act, "", {})
        if after is None and not isinstance(act, nn.Identity):
            return None
    elif type(norm) is not (nn.BatchNorm1d if len(value.shape) == 2 else nn.BatchNorm2d):
        return None
    assert norm.running_mean is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.detach().double()
    if len(value.shape) == 2:
        source = lowering.buffer(node.name, (*value.shape, 1, 1))
        lowering.jobs.append(moving(node.name, source, value))
    else:
        source = lowering.map(value, node.name)
    affine = (scale.float().numpy(), shift.float().numpy())
    return _pointwise(lowering, node, Value(buffer=source, shape=value.shape), affine=affine, activation=after)


def average(lowering: Lowering, node: fx.Node) -> Any:
    """The mean of whole maps."""
    value = first_value(lowering, node)
    if (
        function_name(node) != "mean"
        or node.op == "call_module"
        or not isinstance(value, Value)
        or len(value.shape) != 4
    ):
        return None
    found, expected = (f(value.indices().double()) for f in (lambda x: call(lowering, node, lambda _: x), _over_pixels))
    if not torch.equal(found.flatten(), expected.flatten()):
        return None
    C = value.shape[1]
    source = lowering.map(value, node.name)
    writes = Buffer(name=node.name, channels=C, pixels=(1, 1))
    work = Work(window=POINT, live=LiveWeights.of(torch.ones(C, 1, 1, 1), None, C), finish=Finish(), does="mean")
    lowering.jobs.append(convolving(node.name, work, writes, (source,)))
    return Value(buffer=writes, shape=lowering.shapes[node])


def _over_pixels(images: Tensor) -> Tensor:
    return images.mean((2, 3))


def pool(lowering: Lowering, node: fx.Node) -> Any:
    """Pooling, by what torch does to single pixels."""
    value, module = first_value(lowering, node), module_of(lowering, node)
    largest = _POOLS.get(function_name(node)) if module is None else _POOL_MODULES.get(type(module))
    if largest is None or not isinstance(value, Value) or len(value.shape) != 4 or node not in lowering.shapes:
        return None
    H, W = value.shape[2:]
    rows = _seen(lowering, node, torch.eye(H)[:, None, :, None].expand(H, 1, H, W))[:, 0].any(2).T
    columns = _seen(lowering, node, torch.eye(W)[:, None, None, :].expand(W, 1, H, W))[:, 0].any(1).T
    windows = [
        (np.flatnonzero(row)[:, None] * W + np.flatnonzero(column)).reshape(-1) for row in rows for column in columns
    ]
    if min(map(len, windows)) == 0:
        return None
    shares = None
    if not largest:
        ones = call(lowering, node, lambda _: torch.ones(1, 1, H, W)).flatten().numpy()
        shares = (ones / np.array([len(window) for window in windows])).astype(np.float32)
    source = lowering.map(value, node.name)
    shape = lowering.shapes[node]
    writes = lowering.buffer(node.name, shape)
    lowering.jobs.append(pooling(node.name, writes, source, windows, shares))
    return Value(buffer=writes, shape=shape)


def _seen(lowering: Lowering, node: fx.Node, images: Tensor) -> Any:
    with torch.no_grad():
        return (call(lowering, node, lambda _: images.contiguous()) > 0).numpy()


def join(lowering: Lowering, node: fx.Node) -> Any:
    """Several maps as one, channel after channel."""
    if function_name(node) not in ("cat", "concat", "concatenate") or node not in lowering.shapes:
        return None
    given = node.args[0] if node.args else node.kwargs.get("tensors")
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    parts = (
        [lowering.values[n] if isinstance(n, fx.Node) else n for n in given] if isinstance(given, list | tuple) else []
    )
    shape = lowering.shapes[node]
    if not parts or not all(isinstance(part, Value) for part in parts) or axis not in (1, 1 - len(shape)):
        return None
    writes, first = lowering.buffer(node.name, shape), 0
    for part in parts:
        if len(shape) == 4:
            source = lowering.map(part, node.name)
            lowering.jobs.append(pointing(node.name, writes, source, first=first))
        else:
            lowering.jobs.append(moving(node.name, writes, part, first=first))
        first += part.shape[1] if len(shape) == 4 else int(np.prod(part.shape))
    return Value(buffer=writes, shape=shape)
