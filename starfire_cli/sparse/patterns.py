"""The operations beside convolutions that a loop can do: image intake, subsampling and pooling."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from starfire_cli.sparse.convolution import SlidingWindow, Work
from starfire_cli.sparse.folding import attribute, only_user, pair
from starfire_cli.sparse.loops import Finish
from starfire_cli.sparse.weights import LiveWeights, in_memory

Shape = tuple[int, ...]
_SUBTRACT, _DIVIDE = {operator.sub, torch.sub}, {operator.truediv, torch.div}
_OTHER = slice(None, None, 2)
POINT = SlidingWindow(size=(1, 1), stride=1, padding=(0, 0), dilation=(1, 1))


@dataclass(frozen=True, kw_only=True)
class Intake:
    """The images' node with the nodes that normalise them, and the operation that does all of it."""

    nodes: list[fx.Node]
    work: Work


def intake(root: fx.GraphModule, images: fx.Node, shapes: dict[fx.Node, Shape]) -> Intake:
    """The images, and what normalises them: mean and standard deviation of each channel, if they are that."""
    nodes = [images]
    C = shapes[images][1]
    scale, shift = torch.ones(C, dtype=torch.float64), torch.zeros(C, dtype=torch.float64)
    for kinds in (_SUBTRACT, _DIVIDE):
        user = only_user(nodes[-1])
        if user is None or user.target not in kinds or len(user.args) != 2 or user.args[0] is not nodes[-1]:
            break
        constant = user.args[1]
        if not isinstance(constant, fx.Node) or constant.op != "get_attr" or len(constant.users) != 1:
            break
        value = attribute(root, str(constant.target))
        if tuple(value.shape) not in ((C, 1, 1), (1, C, 1, 1)):
            break
        value = value.detach().double().flatten()
        scale, shift = (scale, shift - value) if kinds is _SUBTRACT else (scale / value, shift / value)
        nodes += [constant, user]
    live = LiveWeights(
        shape=(C, 1, 1, 1),
        groups=C,
        alive=np.packbits(np.ones(C, np.bool_)),
        values=in_memory(scale.float()).numpy(),
        bias=in_memory(shift.float()).numpy(),
    )
    return Intake(nodes=nodes, work=Work(window=POINT, live=live, finish=Finish(), does="scale"))


def subsampling(node: fx.Node, shapes: dict[fx.Node, Shape]) -> Work | None:
    """The shortcut of the first ResNets (every other pixel, channels of zeros around) as a 1x1 convolution, or None."""
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
    window = SlidingWindow(size=(1, 1), stride=2, padding=(0, 0), dilation=(1, 1))
    return Work(window=window, live=LiveWeights.of(weight, None, 1), finish=Finish())


def pooling(root: fx.GraphModule, node: fx.Node, shapes: dict[fx.Node, Shape], positive: set[fx.Node]) -> Work | None:
    """Max pooling of maps that are nowhere below zero (`positive`), or the mean of whole maps, as work for a loop."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if source is None or len(shapes.get(source, ())) != 4:
        return None
    pool = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    one = (1, 1)
    if (isinstance(pool, nn.AdaptiveAvgPool2d) and pair(pool.output_size) == one) or (
        node.target is F.adaptive_avg_pool2d and len(node.args) == 2 and pair(node.args[1]) == one
    ):
        C = shapes[source][1]
        live = LiveWeights.of(torch.ones(C, 1, 1, 1), None, C)
        return Work(window=POINT, live=live, finish=Finish(), does="mean")
    if type(pool) is not nn.MaxPool2d or source not in positive or pool.ceil_mode or pool.return_indices:
        return None
    (R, S), (down, right) = pair(pool.kernel_size), pair(pool.stride)
    if down != right or down not in (1, 2):
        return None
    C = shapes[source][1]
    live = LiveWeights.of(torch.ones(C, 1, R, S), None, C)
    window = SlidingWindow(size=(R, S), stride=down, padding=pair(pool.padding), dilation=pair(pool.dilation))
    return Work(window=window, live=live, finish=Finish(), does="max")


def _around(pad: fx.Node) -> int | None:
    """The number of channels of zeros that `F.pad` puts before the others; None if it does anything else."""
    sizes: Any = pad.args[1] if len(pad.args) == 2 else None
    plain = {"value": (None, 0, 0.0), "mode": ("constant",)}
    if not all(pad.kwargs[name] in plain.get(name, ()) for name in pad.kwargs):
        return None
    if not isinstance(sizes, tuple | list) or len(sizes) != 6 or any(sizes[:4]):
        return None
    before, after = sizes[4:]
    return before if isinstance(before, int) and isinstance(after, int) and min(before, after) >= 0 else None
