"""Finds the plain network and optimizers behind their wrappers, and refuses what cannot be pruned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.errors import BadOption
from starfire_cli.pruning import Layer
from starfire_cli.pruning.ties import parameters_of, ties_of
from starfire_cli.text import some

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def plain_network(model: object) -> nn.Module:
    """The network behind torch.compile, DistributedDataParallel and DataParallel, whose state-dict keys are plain.

    Raises BadOption for what is no network.
    """
    if not isinstance(model, nn.Module):
        raise BadOption(f"model is a {kind_of(model)}; a torch.nn.Module works")
    network: nn.Module = model
    while True:
        if isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
            network = inner
        elif isinstance(network, nn.parallel.DistributedDataParallel | nn.DataParallel):
            network = network.module
        else:
            return network


def plain_optimizers(given: object, *, hooks: bool) -> list[torch.optim.Optimizer]:
    """The optimizers behind the wrappers of Lightning, Accelerate and fastai.

    Raises BadOption for what is none, and with `hooks` for what calls none.
    """
    every = list(given) if isinstance(given, list | tuple) else [given]
    if not every:
        raise BadOption("optimizer=[] holds none; give the optimizer that trains the model, or a list of them")
    found: list[torch.optim.Optimizer] = []
    for one in every:
        wrapped = (getattr(one, name, None) for name in ("optimizer", "opt"))
        plain: Any = next((inner for inner in wrapped if isinstance(inner, torch.optim.Optimizer)), one)
        _refuse_hookless(plain, hooks=hooks)
        if plain not in found:
            found.append(plain)
    return found


def _refuse_hookless(optimizer: Any, *, hooks: bool) -> None:
    """Raises BadOption where `register_step_pre_hook` would do nothing."""
    what = kind_of(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise BadOption(
            f"optimizer is a {what}, which calls no hooks; a torch.optim.Optimizer, or a list of them, works"
        )
    if not hooks:
        return
    hooked = hasattr(optimizer, "_optimizer_step_pre_hooks") and getattr(type(optimizer).step, "hooked", False)
    own = vars(optimizer).get("step")  # that of a learning-rate schedule calls the class's
    if not hooked or not (own is None or hasattr(own, "_wrapped_by_lr_sched")):
        raise BadOption(
            f"optimizer is a {what} whose step() calls no hooks; hooks=False and two calls work, "
            "pruner.after_backward() and pruner.after_step()"
        )


def refuse_unready(net: nn.Module) -> None:
    """Raises BadOption for parameters that are flattened, or have no shape or no memory yet."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in net.modules()):
        raise BadOption(
            "FullyShardedDataParallel flattens weights, so that there is nothing to prune; fully_shard (FSDP2) and "
            "DistributedDataParallel work"
        )
    for key, weight in parameters_of(net).items():
        if isinstance(weight, nn.parameter.UninitializedParameter):
            raise BadOption(f"{key} has no shape yet; run one batch through the model before attaching")
        if weight.is_meta:
            raise BadOption(
                f"{key} is on the meta device, without values; load or initialise the model before attaching"
            )


def refuse_unprunable(net: nn.Module, layers: Iterable[Layer]) -> None:
    """Raises BadOption for weights that are quantised, or several parameters in one memory."""
    parameters = parameters_of(net)
    for layer in layers:
        weight = parameters[layer.key]
        if type(weight.data) is not Tensor or weight.dtype not in _FLOATS:
            kind = type(weight.data).__name__ if type(weight.data) is not Tensor else str(weight.dtype)
            raise BadOption(
                f"{layer.key} is quantised or of a special kind ({kind}); floating-point weights can be pruned, "
                f"keep_dense=[{layer.name!r}] leaves it out"
            )
    keys = {layer.key for layer in layers}
    for key, first in ties_of(parameters).items():
        if {key, first} & keys and parameters[key] is not parameters[first]:
            raise BadOption(
                f"{key} and {first} are two parameters in one memory, which an optimizer updates twice; tie them by "
                "assigning one parameter to both modules, before the optimizer is made"
            )


def refuse_not_held(
    net: nn.Module, optimizers: Sequence[torch.optim.Optimizer], layers: Sequence[Layer]
) -> list[torch.optim.Optimizer]:
    """The optimizers that hold weights of `layers`. Raises BadOption for weights that none holds, or several do."""
    parameters = parameters_of(net)
    holders: dict[int, list[torch.optim.Optimizer]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                holders.setdefault(id(parameter), []).append(optimizer)
    missing = [layer for layer in layers if id(parameters[layer.key]) not in holders]
    if missing:
        names = [layer.name for layer in missing]
        which, more = "it" if len(names) == 1 else "them", " and so on" if names[3:] else ""
        raise BadOption(
            f"the optimizer does not hold {some([layer.key for layer in missing])}; give all optimizers as a list, or "
            f"leave {which} out: keep_dense={names[:3]!r}{more}"
        )
    for layer in layers:
        if len(holders[id(parameters[layer.key])]) > 1:
            raise BadOption(f"{layer.key} is held by two optimizers; which of them changes it last cannot be told")
    wanted = {id(holders[id(parameters[layer.key])][0]) for layer in layers}
    return [optimizer for optimizer in optimizers if id(optimizer) in wanted]


def kind_of(thing: object) -> str:
    """The type of a thing, with its module but for builtins."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}".removeprefix("builtins.")
