"""Attaches a pruner to a model and its optimizers; what cannot work is refused before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli import options
from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint import file as checkpoint
from starfire_cli.formats.run import find_checkpoint
from starfire_cli.pruning import (
    CHANNEL_METHODS,
    ONESHOT_METHODS,
    TRAINING_METHODS,
    Layer,
    Masks,
    NetworkMethod,
    Pruner,
    layers_of_model,
    select,
)
from starfire_cli.pruning.axes import Axes
from starfire_cli.pruning.ties import masks_once, parameters_of, ties_of
from starfire_cli.records.attach import planned_sparsity
from starfire_cli.records.train import PlanLayer
from starfire_cli.text import some
from starfire_cli.workflows.attach.attached import AttachedPruner, refuse_second
from starfire_cli.workflows.attach.era_options import EraOptions, era_of
from starfire_cli.workflows.attach.moving_average import plain_average
from starfire_cli.workflows.attach.notices import warn, warn_of_dead_layers
from starfire_cli.workflows.attach.parts import (
    plain_network,
    plain_optimizers,
    refuse_not_held,
    refuse_unprunable,
    refuse_unready,
)
from starfire_cli.workflows.attach.ranks import average_of_ranks
from starfire_cli.workflows.attach.shards import ShardedPruner, is_sharded, refuse_demands_of_shards, whole_network
from starfire_cli.workflows.pruning import plan_layers
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.settings import Pruning, pruning_of
from starfire_cli.workflows.train.start import Start, leave_fixed

_NEAR = 0.02  # how far a sparsity may be from the target without a word
MaskSource = Mapping[str, Tensor] | str | PathLike[str]


@dataclass(frozen=True, kw_only=True)
class AttachRequest:
    """One call of `starfire.attach`; see there. `target` None is the default of `starfire train`."""

    method: str = TrainRequest.method
    fc: str = TrainRequest.fc
    target: float | None = None
    when: EraOptions = field(default_factory=EraOptions)
    only: Sequence[str] = ()
    keep_dense: Sequence[str] = ()
    masks: MaskSource | None = None
    loss: Callable[[], Tensor] | None = None
    image_size: int | None = None
    kernels: str = TrainRequest.kernels
    seed: int = TrainRequest.seed
    hooks: bool = True


def attach(model: nn.Module, optimizers: Any, request: AttachRequest, ema: Any = None) -> AttachedPruner:
    """See `starfire.attach`. Raises BadOption and StarfireError with one line; nothing is changed then."""
    network = plain_network(model)
    refuse_unready(network)
    every = plain_optimizers(optimizers, hooks=request.hooks)
    pruning = _pruning(request)
    era = era_of(request.when, pruning)
    sharded = any(map(is_sharded, network.parameters()))
    if sharded:
        refuse_demands_of_shards(request.method, pruning, ema, parameters_of(network))
    whole = whole_network(network) if sharded else network
    found = _layers(whole, request, pruning)
    refuse_unprunable(whole, found.layers)
    dead = found.masks or {}
    core = (partial(ShardedPruner, network) if sharded else Pruner)(
        whole,
        found.layers,
        conv=pruning.conv,
        linear=pruning.linear,
        target=pruning.target,
        era=era,
        masks={key: torch.ones_like(mask) for key, mask in dead.items()},  # which layers have one; what, is said below
        kernels=request.kernels,
        seed=request.seed,
    )
    left_out = [
        *found.left_out,
        *((layer.name, f"method={pruning.method_spec!r} leaves it alone") for layer in core.left_alone),
    ]
    if not core.layers and not core.adds_gradients and pruning.method_spec != "dense":
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out[:3]) or "it has no Conv2d and no Linear"
        raise BadOption(f"nothing of this model would be pruned: {why}")
    if request.target and pruning.method_spec == "dense" and not request.masks:
        warn(f"target={request.target:g}: method='dense' prunes nothing; target=0 says so as well")
    elif request.target is not None and pruning.shown_target is None:
        warn(
            f"target={request.target:g}: method={pruning.method_spec!r} meets none; summary() shows what comes out",
        )
    holders = refuse_not_held(network, every, core.layers) or every
    _refuse_demands(core, pruning, request, holders)
    average = plain_average(ema, network, [layer.key for layer in core.layers])
    refuse_second(core.weights)
    plan_layers(core, pruning, {})  # says so if nothing would be left of a layer
    core.load(dead)
    if dead:
        warn_of_dead_layers("masks: ", core.masks)
    plan = _plan(core, pruning, request)
    core.use_average(average_of_ranks)
    attached = AttachedPruner(
        network,
        average,
        holders,
        core,
        pruning,
        left_out=left_out,
        options={
            "only": list(request.only),
            "keep_dense": list(request.keep_dense),
            "seed": request.seed,
            "ramp": request.when.ramp,
            "mask_every": request.when.mask_every,
            "steps_per_epoch": request.when.steps_per_epoch,
            "total_steps": request.when.total_steps,
        },
        plan=plan,
        hooks=request.hooks,
    )
    try:
        attached.begin(request.loss)
    except BaseException:
        attached.detach()
        raise
    return attached


def _plan(core: Pruner, pruning: Pruning, request: AttachRequest) -> tuple[PlanLayer, ...] | None:
    """The pruned layers at the end of the era; None where the method tells in the end only.

    Warns where the whole is not what was asked for: whole units go, and a cap or a dead layer takes more.
    """
    if not pruning.targeted:
        return None
    rows = plan_layers(core, pruning, {})
    planned = planned_sparsity(rows)
    if request.target and rows and abs(planned - pruning.target) > _NEAR:
        most = max(rows, key=lambda row: (row.weights - row.left) - pruning.target * row.weights)
        warn(
            f"target={pruning.target:g} comes to {planned:.2%} with method={pruning.method_spec!r}, most of it by "
            f"{most.name}: {most.sparsity:.2%} ({most.rule})"
        )
    return rows


def _pruning(request: AttachRequest) -> Pruning:
    """The methods. Raises BadOption for values out of range, and for methods that change more than weights."""
    for name, kind, works in (
        ("method", str, 'a name such as "ck"'),
        ("fc", str, 'a name such as "fine"'),
        ("target", int | float | None, "a number such as 0.8"),
        ("seed", int, "a whole number"),
    ):
        value = getattr(request, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadOption(f"{name}={value!r} is a {type(value).__name__}; {works} works")
    if request.loss is not None and not callable(request.loss):
        raise BadOption(f"loss={request.loss!r} is no function; one of no arguments that returns the mean loss works")
    for name in ("only", "keep_dense"):
        if isinstance(getattr(request, name), str):
            raise BadOption(f"{name}={getattr(request, name)!r} is one text; a list of globs works")
    asked = TrainRequest(
        method=request.method,
        fc=request.fc,
        target=TrainRequest.target if request.target is None else request.target,
        only=tuple(request.only),
        keep_dense=tuple(request.keep_dense),
        ramp=request.when.ramp,
        mask_every=request.when.mask_every,
        kernels=request.kernels,
        seed=request.seed,
    )
    options.check(asked)
    name = request.method.partition(":")[0]
    if name not in TRAINING_METHODS.names() and name in (*ONESHOT_METHODS.names(), *CHANNEL_METHODS.names()):
        raise BadOption(
            f"method={request.method!r} prunes a network that is trained already, which starfire prune-mask does; in "
            f"training there are: {', '.join(TRAINING_METHODS.names())}"
        )
    pruning = pruning_of(asked)
    axes = _axes(pruning)
    if axes is not None and axes.rounds is not None:
        raise BadOption(
            f"method={request.method!r} trains in rounds and sets weights back between them, which is more than one "
            "loop; starfire train does that"
        )
    if axes is not None and axes.shrinking is not None:
        raise BadOption(
            f"method={request.method!r} removes channels while it trains, and a loop holds on to its parameters; "
            "starfire train does that, and method='ssl' has a penalty of that kind without the removal"
        )
    return pruning


def _layers(network: nn.Module, request: AttachRequest, pruning: Pruning) -> Start:
    """The layers to prune, why others are not, and what is dead already. Raises BadOption."""
    found, left_out = layers_of_model(network)
    chosen, exempt = select(found, only=request.only, keep_dense=request.keep_dense)
    kept = {layer.name for layer in select(found, only=request.only)[0]}
    why = f"not in only={list(request.only)!r}"
    weights = parameters_of(network)
    # Quantised weights, which need no gradient either, are refused below.
    frozen = [x for x in chosen if not weights[x.key].requires_grad and weights[x.key].is_floating_point()]
    chosen = [layer for layer in chosen if layer not in frozen]
    left_out += [(layer.name, "it is frozen (requires_grad=False)") for layer in frozen]
    left_out += [(name, f"keep_dense={list(request.keep_dense)!r}" if name in kept else why) for name, _ in exempt]
    start = Start(layers=chosen, left_out=left_out, masks=_masks(network, found, request.masks))
    if getattr(pruning.conv, "free_outputs_only", False):
        if request.image_size is None:
            raise BadOption(
                f"method={request.method!r} looks at which outputs are added to others; image_size=..., in pixels a "
                "side, says with which images the model runs"
            )
        leave_fixed(start, network, request.image_size)
    dead = start.masks or {}
    # What came in dead stays dead, also in layers that the method does not touch.
    start.layers = [layer for layer in found if layer in start.layers or layer.key in dead]
    return start


def _masks(network: nn.Module, layers: Sequence[Layer], given: MaskSource | None) -> Masks:
    """The masks of what is dead already. Raises BadOption for masks that do not fit."""
    if given is None:
        return {}
    where = "masks"
    if not isinstance(given, Mapping):
        path = find_checkpoint(Path(given))
        read, where = checkpoint.load(path).masks, f"masks={str(given)!r}"
        if not read:
            raise BadOption(f"{where} holds no masks")
        given = read
    masks = masks_once(dict(given), ties_of(parameters_of(network)), [layer.key for layer in layers])
    shapes = {layer.key: layer.shape for layer in layers}
    for key, mask in masks.items():
        if key not in shapes:
            raise BadOption(f"{where}: {key} is no prunable layer of this model, which has {some(list(shapes))}")
        if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or tuple(mask.shape) != shapes[key]:
            raise BadOption(f"{where}: {key} is no bool tensor of shape {shapes[key]}, True where a weight is alive")
    return masks


def _refuse_demands(
    core: Pruner, pruning: Pruning, request: AttachRequest, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Raises BadOption where a method asks for what this loop does not give."""
    method = f"method={request.method!r}"
    if core.needs_loss and request.loss is None:
        raise BadOption(
            f"{method} looks at a batch before the first step; loss=..., a function of no arguments that returns its "
            "mean loss, such as lambda: criterion(model(images), labels), lets it"
        )
    if core.adds_gradients and len(optimizers) > 1:
        raise BadOption(
            f"{method} adds a penalty to all gradients at once, and the model has {len(optimizers)} optimizers"
        )
    axes = _axes(pruning)
    reads = frozenset[str]().union(*(stage.reads for stage in axes.stages)) if axes is not None else frozenset()
    if any(isinstance(one, torch.optim.LBFGS) for one in optimizers) and (
        core.adds_gradients or reads & {"gradient", "momentum"}
    ):
        raise BadOption(
            f"{method} follows the gradient of each step, and LBFGS computes several; window, ck or gmp work"
        )
    if request.masks is not None and not core.monotone:
        raise BadOption(f"masks says what stays dead, and {method} revives weights; gmp and others revive none")


def _axes(pruning: Pruning) -> Axes | None:
    return pruning.conv.axes() if isinstance(pruning.conv, NetworkMethod) else None
