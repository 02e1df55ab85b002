"""The torch.fx graph of a network, with the role of each node: what it does to the channels that pass through it.

Only what is listed here is followed. Everything else has the role "unknown": nothing is concluded across it.
"""

from __future__ import annotations

import contextlib
import copy
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.ties import overlapping, ties_of

Role = Literal[
    "input", "constant", "output", "conv", "linear", "batchnorm",
    "channelwise",  # each output element from one input element of its channel, or from some of its map
    "average",  # a pool that may count zeros of its padding
    "add", "multiply", "cat", "flatten",
    "rearrange",  # moves elements about, or divides them; followed for constants, not for removing channels
    "shape",  # a size, not a value
    "unknown",
]  # fmt: skip

CHANNELWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Identity, nn.Dropout, nn.Dropout2d,
    nn.AlphaDropout, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
MODULES: dict[type[nn.Module], Role] = {
    **dict.fromkeys(CHANNELWISE, "channelwise"),
    nn.AvgPool2d: "average",
    nn.Flatten: "flatten",
    nn.ChannelShuffle: "rearrange",
    nn.ZeroPad2d: "rearrange",
}
FUNCTIONS: dict[Callable[..., Any], Role] = {
    **dict.fromkeys(
        (
            F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu,
            F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.sigmoid, torch.sigmoid, F.tanh, torch.tanh, F.softplus,
            F.softsign, F.logsigmoid, F.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, operator.neg,
        ),
        "channelwise",
    ),
    **dict.fromkeys((operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub), "add"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), "multiply"),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), "rearrange"),
    F.avg_pool2d: "average",
    torch.mean: "channelwise",
    torch.cat: "cat",
    torch.flatten: "flatten",
    **dict.fromkeys(
        (F.pad, operator.getitem, torch.chunk, torch.split, torch.permute, torch.transpose, torch.reshape,
         torch.squeeze, torch.unsqueeze, torch.stack, F.channel_shuffle),
        "rearrange",
    ),
    getattr: "shape",
    torch._assert: "shape",
}  # fmt: skip
METHODS: dict[str, Role] = {
    **dict.fromkeys(("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "neg", "mean"), "channelwise"),
    **dict.fromkeys(("clone", "contiguous", "detach", "float", "double"), "channelwise"),
    **dict.fromkeys(("add", "add_", "sub", "sub_"), "add"),
    **dict.fromkeys(("mul", "mul_"), "multiply"),
    **dict.fromkeys(("flatten", "view", "reshape"), "flatten"),
    **dict.fromkeys(
        ("permute", "transpose", "chunk", "split", "squeeze", "unsqueeze", "expand", "expand_as", "div", "div_"),
        "rearrange",
    ),
    **dict.fromkeys(("size", "dim", "numel"), "shape"),
}
USUAL_SIZES = (64, 32, 224, 28, 16, 96, 128, 299)
_SHAPES = ("shape", "ndim", "dtype", "device")


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A float64 copy of a model in eval mode on the CPU, and its graph.

    Args:
        model: the copy.
        root: its graph, with the same submodules.
            shared: parameters that more than one module holds, by one of these modules' names.
    """

    model: nn.Module
    root: fx.GraphModule
    calls: Counter[str]
    shared: frozenset[str]

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a `call_module` node calls."""
        return self.root.get_submodule(str(node.target))

    def role(self, node: fx.Node) -> Role:
        """The role of `node`; "unknown" where nothing may be concluded."""
        if node.op == "call_module":
            return module_role(self.module(node))
        if node.op == "call_function":
            return _function_role(node)
        if node.op == "call_method":
            return METHODS.get(str(node.target), "unknown")
        return {"placeholder": "input", "get_attr": "constant", "output": "output"}[node.op]  # type: ignore[return-value]

    def once(self, name: str) -> bool:
        """Whether module `name` is called once and shares no parameter, so that it can change on its own."""
        return self.calls[name] == 1 and name not in self.shared


def trace(model: nn.Module, dtype: torch.dtype = torch.float64) -> Traced:
    """Trace a copy of `model` in `dtype`. Raises StarfireError with the reason where torch.fx cannot."""
    try:
        twin = copy.deepcopy(model).to("cpu", dtype).eval()
    except Exception as error:  # noqa: BLE001 - a user's module may refuse a copy in any way
        raise StarfireError(f"the model cannot be copied: {_one_line(error)}") from None
    try:
        root = fx.GraphModule(twin, LeafTracer().trace(twin))
    except Exception as error:  # noqa: BLE001 - tracing runs a user's code
        raise StarfireError(f"torch.fx cannot trace the model: {_one_line(error)}") from None
    calls = Counter(str(node.target) for node in root.graph.nodes if node.op == "call_module")
    calls.update(str(node.target).rpartition(".")[0] for node in root.graph.nodes if node.op == "get_attr")
    return Traced(model=twin, root=root, calls=calls, shared=_shared(model))


def module_role(module: nn.Module) -> Role:
    """The role of a module in eval mode: "unknown" for parametrized ones and subclasses with a forward of their own."""
    if parametrize.is_parametrized(module):
        return "unknown"
    if isinstance(module, nn.Conv2d):
        same = type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
        return "conv" if same else "unknown"
    if isinstance(module, nn.Linear):
        return "linear" if type(module).forward is nn.Linear.forward else "unknown"
    if isinstance(module, _BatchNorm):
        # Some carry their activation inside (timm's BatchNormAct2d).
        inside = all(module_role(child) == "channelwise" for child in module.modules() if child is not module)
        return "batchnorm" if inside and module.running_mean is not None else "unknown"
    if isinstance(module, nn.PReLU):
        return "channelwise" if module.num_parameters == 1 else "rearrange"
    return MODULES.get(type(module), "unknown")


@torch.no_grad()
def fitting_image(traced: Traced, example: Tensor | None = None) -> Tensor:
    """One image of noise that the model takes, (1, C, H, W), in its dtype: of `example`'s shape, or of a usual size.

    Raises StarfireError where no size works.
    """
    dtype = next((p.dtype for p in traced.model.parameters()), torch.float64)
    if example is not None:
        return _noise(tuple(example.shape[1:])).to(dtype)
    convs = [m for m in traced.model.modules() if isinstance(m, nn.Conv2d)]
    for size in USUAL_SIZES:
        image = _noise((convs[0].in_channels if convs else 3, size, size)).to(dtype)
        with contextlib.suppress(Exception):
            traced.model(image.clone())
            return image
    raise StarfireError(
        f"the model takes no square image of {', '.join(map(str, USUAL_SIZES))} pixels; give an example"
    )


def node_name(node: fx.Node) -> str:
    """The name of a node in messages."""
    return str(node.target) if node.op != "call_function" else getattr(node.target, "__name__", str(node.target))


def producers(traced: Traced, node: fx.Node, not_past: tuple[Role, ...] = ()) -> tuple[list[fx.Node], list[fx.Node]]:
    """The convolutions and linear layers that reach `node` with no other between, and all nodes on the ways there.

    Nothing behind a node whose role is in `not_past` is looked at.
    """
    found: dict[fx.Node, None] = {}
    between: dict[fx.Node, None] = {}
    todo = list(node.all_input_nodes)
    while todo:
        current = todo.pop()
        role = traced.role(current)
        if role in ("conv", "linear"):
            found[current] = None
        elif current not in between:
            between[current] = None
            todo += current.all_input_nodes if role not in not_past else []
    return list(found), list(between)


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class LeafTracer(fx.Tracer):
    """Traces down to the modules that have a role."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_role(m) in ("conv", "linear", "batchnorm") or super().is_leaf_module(m, module_qualified_name)


def _function_role(node: fx.Node) -> Role:
    target = node.target
    if target is getattr:
        return "shape" if node.args[1] in _SHAPES else "unknown"
    if target is F.dropout or getattr(target, "__name__", "") in ("stochastic_depth", "drop_path"):
        # (input, p, training) and (input, p, mode, training): nothing happens where training is off.
        off = False in (*node.args[2:], node.kwargs.get("training"))
        return "channelwise" if off else "unknown"
    if target is F.batch_norm:
        training = node.kwargs.get("training", node.args[5] if len(node.args) > 5 else False)
        return "rearrange" if training is False else "unknown"
    return FUNCTIONS.get(target, "unknown")  # type: ignore[arg-type]


def _shared(model: nn.Module) -> frozenset[str]:
    """Modules with a parameter that is another module's, too, or lies in the same memory."""
    own = {
        f"{name}.{key}": parameter
        for name, module in model.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
    }
    pairs = [(key.rpartition(".")[0], other.rpartition(".")[0]) for key, other in ties_of(own).items()]
    overlaps = {key.rpartition(".")[0] for key in overlapping(own)}
    return frozenset(overlaps | {name for pair in pairs if pair[0] != pair[1] for name in pair})


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
