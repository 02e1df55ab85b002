"""Layers that loops know in another form only: other strides, layer normalisation, layers called as functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.nn import functional as F

from starfire_cli.sparse.convolution import SlidingWindow, Work
from starfire_cli.sparse.export.buffers import Buffer, Value
from starfire_cli.sparse.export.jobs import convolving, moving, norming
from starfire_cli.sparse.export.lowering import Lowering, channels_last, linear
from starfire_cli.sparse.export.operators import first_value, function_name, module_of
from starfire_cli.sparse.folding import pair
from starfire_cli.sparse.loops import Finish
from starfire_cli.sparse.weights import LiveWeights


def convolve(lowering: Lowering, node: fx.Node) -> Any:
    """Convolutions of any stride and padding: of the padded image, whose pixels of a stride become channels."""
    value, layer = first_value(lowering, node), module_of(lowering, node) or _called(lowering, node)
    if type(layer) is not nn.Conv2d or not isinstance(value, Value):
        return None
    shape, name = lowering.shapes[node], node.name
    seen, weight = _padded(value.indices().double(), layer), _dilated(layer)
    stride = pair(layer.stride)
    if stride in ((1, 1), (2, 2)):
        step = stride[0]
    else:
        step, seen, weight = 1, *_by_stride(seen, weight, stride, (shape[2], shape[3]))
    writes, source = lowering.buffer(name, shape), lowering.buffer(name, tuple(seen.shape))
    moved = Value(buffer=value.buffer, shape=tuple(seen.shape), index=seen.long())
    lowering.jobs.append(moving(name, source, moved))
    size = (weight.shape[2], weight.shape[3])
    window = SlidingWindow(size=size, stride=step, padding=(0, 0), dilation=(1, 1))
    live = LiveWeights.of(weight, layer.bias, layer.groups)
    lowering.jobs.append(convolving(name, Work(window=window, live=live, finish=Finish()), writes, (source,)))
    return Value(buffer=writes, shape=shape)


def _called(lowering: Lowering, node: fx.Node) -> nn.Conv2d | None:
    """The layer that a call of `conv2d` is, where its weight and bias are constants: BlurPool, scaled weights."""
    if function_name(node) != "conv2d" or node.op != "call_function":
        return None
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    passed = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    given: dict[str, Any] = {name: lowering.values[v] if isinstance(v, fx.Node) else v for name, v in passed.items()}
    weight, bias = given.pop("weight", None), given.pop("bias", None)
    del given["input"]
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        return None
    K, C = weight.shape[0], weight.shape[1] * given.get("groups", 1)
    layer = nn.Conv2d(C, K, (weight.shape[2], weight.shape[3]), bias=bias is not None, **given)
    layer.weight.data = weight.detach().float()
    if bias is not None and layer.bias is not None:
        layer.bias.data = bias.detach().float()
    return layer


def _padded(image: Tensor, layer: nn.Conv2d) -> Tensor:
    """The image (1, C, H, W) with what the layer puts around it; zeros are 0."""
    if layer.padding == "valid":
        return image
    size, dilation = pair(layer.kernel_size), pair(layer.dilation)
    if layer.padding == "same":
        around = [dilation[axis] * (size[axis] - 1) for axis in (1, 0)]
        sides = [side for total in around for side in (total // 2, total - total // 2)]
    else:
        above, beside = pair(layer.padding)
        sides = [beside, beside, above, above]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(image, sides, mode=mode)


def _dilated(layer: nn.Conv2d) -> Tensor:
    """The weight with zeros where a dilated kernel looks at nothing."""
    weight, dilation = layer.weight.detach(), pair(layer.dilation)
    K, C, R, S = weight.shape
    whole = weight.new_zeros(K, C, dilation[0] * (R - 1) + 1, dilation[1] * (S - 1) + 1)
    whole[:, :, :: dilation[0], :: dilation[1]] = weight
    return whole


def _by_stride(image: Tensor, weight: Tensor, stride: tuple[int, int], out: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image and weight for stride 1: the pixels of each block of `stride` rows and columns as channels of one."""
    R, S = weight.shape[2:]
    blocks = [math.ceil(size / step) for size, step in zip((R, S), stride, strict=True)]
    rows, columns = (step * (o + b - 1) for step, o, b in zip(stride, out, blocks, strict=True))
    image = F.pad(image, (0, columns - image.shape[3], 0, rows - image.shape[2]))  # or cuts off what nobody reads
    weight = F.pad(weight, (0, stride[1] * blocks[1] - S, 0, stride[0] * blocks[0] - R))
    return tuple(  # type: ignore[return-value]
        x.reshape(*x.shape[:2], x.shape[2] // stride[0], stride[0], x.shape[3] // stride[1], stride[1])
        .permute(0, 1, 3, 5, 2, 4)
        .reshape(x.shape[0], -1, x.shape[2] // stride[0], x.shape[3] // stride[1])
        for x in (image, weight)
    )


def apply_linear(lowering: Lowering, node: fx.Node) -> Any:
    """Linear layers that are called as a function of their weight."""
    value = first_value(lowering, node)
    if function_name(node) != "linear" or node.op != "call_function" or not isinstance(value, Value):
        return None
    given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
    weight, bias = (lowering.values.get(given.get(name)) for name in ("weight", "bias"))  # type: ignore[arg-type]
    if not isinstance(weight, Tensor) or (bias is not None and not isinstance(bias, Tensor)):
        return None
    return linear(lowering, node, node.name, value, LiveWeights.of(weight[:, :, None, None], bias, 1))


def normalise_layer(lowering: Lowering, node: fx.Node) -> Any:
    """Layer normalisation over the channels of each pixel."""
    value, layer = first_value(lowering, node), module_of(lowering, node)
    if isinstance(layer, nn.LayerNorm):
        given: dict[str, Any] = {"normalized_shape": layer.normalized_shape, "eps": layer.eps}
        given |= {"weight": layer.weight, "bias": layer.bias}
    elif function_name(node) == "layer_norm" and node.op == "call_function":
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        passed = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        given = {name: lowering.values[v] if isinstance(v, fx.Node) else v for name, v in passed.items()}
    else:
        return None
    if not isinstance(value, Value) or tuple(given["normalized_shape"]) != value.shape[-1:]:
        return None
    C = value.shape[-1]
    if value.is_channels_last:
        source = value.buffer
    elif math.prod(value.shape) == C:  # one pixel
        source = Buffer(name=node.name, channels=C, pixels=(1, 1))
        lowering.jobs.append(moving(node.name, source, value))
    else:
        return None
    writes = Buffer(name=node.name, channels=C, pixels=source.pixels)
    scale, shift = (
        np.full(C, plain, np.float32) if given.get(name) is None else given[name].detach().float().numpy()
        for name, plain in (("weight", 1.0), ("bias", 0.0))
    )
    lowering.jobs.append(norming(node.name, writes, source, scale, shift, float(given.get("eps", 1e-5))))
    whole = channels_last(writes)
    return Value(buffer=writes, shape=value.shape, index=whole.index if value.is_channels_last else None)
