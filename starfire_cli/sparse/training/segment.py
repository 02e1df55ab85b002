"""Segments of a network that torch computes, with its own autograd between their ends."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from starfire_cli.errors import StarfireError
from starfire_cli.sparse.folding import kind
from starfire_cli.sparse.training.reading import RELU, Segment

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOL_FUNCTIONS: set[object] = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d}
_DRAWING: set[object] = {
    nn.Dropout, nn.AlphaDropout, nn.RReLU, F.dropout, F.alpha_dropout, F.rrelu, torch.dropout, torch.bernoulli,
    torch.rand_like, torch.randn_like, "bernoulli",
}  # fmt: skip
_IN_PLACE: dict[object, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


@dataclass(frozen=True, kw_only=True)
class SegmentSaved:
    """The ends of a segment's graph.

    Args:
        leaves: inputs whose gradients are wanted.
        made: results that depend on something whose gradient is wanted.
        parameters: whose gradients are wanted.
    """

    leaves: dict[fx.Node, Tensor]
    made: dict[fx.Node, Tensor]
    parameters: tuple[Tensor, ...]


def run_segment(
    root: fx.GraphModule,
    segment: Segment,
    inputs: Mapping[fx.Node, Any],
    *,
    track: Collection[fx.Node],
    wanted: set[int] | None,
    layout: torch.memory_format = torch.contiguous_format,
) -> tuple[dict[fx.Node, Any], SegmentSaved]:
    """The values of a segment's outputs, and what backward needs.

    Args:
        root: the network's graph.
        segment: of it.
        inputs: values of its inputs; tensors without history.
        track: inputs whose gradients are wanted.
        wanted: parameters whose gradients are wanted, by id; None: nothing is tracked.
        layout: of the images; random numbers are drawn for maps that lie so, as they are in the dense network.

    Raises StarfireError where several tensors leave the segment as one value.
    """
    env: dict[fx.Node, Any] = dict(inputs)
    parameters: dict[int, Tensor] = {}
    leaves: dict[fx.Node, Tensor] = {}
    if wanted is not None:
        for node in segment.inputs:
            if node in track and isinstance(env[node], Tensor) and env[node].is_floating_point():
                leaves[node] = env[node] = env[node].detach().requires_grad_()
    with torch.set_grad_enabled(wanted is not None):
        for node in segment.nodes:
            env[node] = _run(root, node, env, parameters, wanted or set(), layout)
    results = {node: env[node] for node in segment.outputs}
    for node, result in results.items():
        refuse_several(node, result)
    made = {node: result for node, result in results.items() if isinstance(result, Tensor) and result.requires_grad}
    return results, SegmentSaved(leaves=leaves, made=made, parameters=tuple(parameters.values()))


def refuse_several(node: fx.Node, value: Any) -> None:
    """Raise StarfireError where a node's value is several tensors."""
    if isinstance(value, tuple | list) and any(isinstance(item, Tensor) for item in value):
        raise StarfireError(f"{node.name} gives several tensors, which sparse compute does not follow")


def segment_gradients(
    saved: SegmentSaved, given: Mapping[fx.Node, Tensor]
) -> tuple[dict[fx.Node, Tensor], list[tuple[Tensor, Tensor]]]:
    """Gradients of the inputs, and (parameter, gradient) of parameters, from those of the outputs."""
    ends = [node for node in given if node in saved.made]
    sources = [*saved.leaves.values(), *saved.parameters]
    if not ends or not sources:
        return {}, []
    found = torch.autograd.grad(
        [saved.made[node] for node in ends], sources, [given[node] for node in ends], allow_unused=True
    )
    count = len(saved.leaves)
    inputs = {node: g for node, g in zip(saved.leaves, found[:count], strict=True) if g is not None}
    return inputs, [(p, g) for p, g in zip(saved.parameters, found[count:], strict=True) if g is not None]


def _run(
    root: fx.GraphModule,
    node: fx.Node,
    env: dict[fx.Node, Any],
    parameters: dict[int, Tensor],
    wanted: set[int],
    layout: torch.memory_format,
) -> Any:
    """One operation; what it would change in place, it gets as a copy."""
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(root)
        if isinstance(value, nn.Parameter) and id(value) in wanted:
            parameters[id(value)] = value
        return value
    args: Any = fx.node.map_arg(node.args, env.__getitem__)
    kwargs: Any = fx.node.map_arg(node.kwargs, env.__getitem__)
    if kind(root, node) in _DRAWING:
        args = tuple(_laid(value, layout) for value in args)
    if kind(root, node) in RELU:
        return F.relu(args[0] if args else kwargs["input"])
    if node.op == "call_function":
        return _call(_IN_PLACE.get(node.target, node.target), args, kwargs)
    if node.op == "call_method":
        own, *rest = args
        name = str(node.target)
        return getattr(_copied(own) if name.endswith("_") else own, name)(*rest, **kwargs)
    module = root.get_submodule(str(node.target))
    parameters |= {id(p): p for p in module.parameters() if id(p) in wanted}
    if isinstance(module, _POOLS) and _is_map(args) and not getattr(module, "return_indices", False):
        return module(args[0].transpose(0, 1)).transpose(0, 1)
    if getattr(module, "inplace", False):
        args = tuple(_copied(value) for value in args)
    return module(*args, **kwargs)


def _call(target: Any, args: Any, kwargs: Any) -> Any:
    if _is_map(args) and args[0].stride(0) == 1 and (in_order := _in_maps_order(target, *args[1:], **kwargs)):
        return in_order(args[0].permute(1, 2, 3, 0)).permute(3, 0, 1, 2)
    if target in _POOL_FUNCTIONS and _is_map(args) and not kwargs.get("return_indices"):
        return target(args[0].transpose(0, 1), *args[1:], **kwargs).transpose(0, 1)
    flagged = kwargs.get("inplace") or any(value is True for value in args[1:])
    if flagged or getattr(target, "__name__", "").endswith("_"):
        args = tuple(_copied(value) for value in args)
    return target(*args, **kwargs)


def _in_maps_order(target: Any, *args: Any, **kwargs: Any) -> Callable[[Tensor], Tensor] | None:
    """Slices and padding with constants for (C, H, W, N): results and gradients lie so, too. None for all else."""
    if target is operator.getitem:
        (index,) = args
        if not isinstance(index, tuple) or len(index) > 4 or not all(isinstance(part, slice) for part in index):
            return None
        parts = [*index, *[slice(None)] * (4 - len(index))]
        return lambda x: x[(*parts[1:], parts[0])]
    return _padding(*args, **kwargs) if target is F.pad else None


def _padding(pad: Any, mode: str = "constant", value: float | None = None) -> Callable[[Tensor], Tensor] | None:
    if mode != "constant" or len(pad) not in (2, 4, 6):
        return None
    return lambda x: F.pad(x, (0, 0, *pad), value=value)


def _is_map(args: Any) -> bool:
    """Whether a pool's input may be taken with images as channels, which is how maps lie in memory."""
    return bool(args) and isinstance(args[0], Tensor) and args[0].dim() == 4


def _laid(value: Any, layout: torch.memory_format) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.contiguous(memory_format=layout if value.dim() == 4 else torch.contiguous_format)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
