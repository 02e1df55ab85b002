"""Resolves a training request: fills gaps from a recipe, builds methods, checks values against each other."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch import nn

from starfire_cli import options
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.numbers import LARGEST
from starfire_cli.options import out_of_range
from starfire_cli.pruning import (
    CHANNEL_METHODS,
    LINEAR_METHODS,
    METHODS,
    ONESHOT_METHODS,
    TRAINING_METHODS,
    Method,
    NetworkMethod,
)
from starfire_cli.pruning.axes import Shrinking
from starfire_cli.pruning.channels.graph import trace
from starfire_cli.pruning.codebook import Codebook, parse
from starfire_cli.pruning.schedule import parse_era
from starfire_cli.registry import Family
from starfire_cli.workflows.train.recipes import Recipe, recipe_for
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.unread_options import refuse_unread

_OF_SHARED = 0.01  # of a recipe's learning rate: the gradient of a shared value is the sum over its weights


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The resolved pruning half of a request."""

    conv: Method | NetworkMethod
    linear: Method | NetworkMethod
    target: float
    method_spec: str
    fc_spec: str
    codebook: Codebook | None = None

    @property
    def targeted(self) -> bool:
        """Whether the methods aim at the target; else the sparsity is what comes out."""
        return not isinstance(self.conv, NetworkMethod) or self.conv.axes().targeted

    @property
    def shown_target(self) -> float | None:
        """The target; None for methods that look at none."""
        aimed = isinstance(self.conv, NetworkMethod) and self.conv.axes().aimed
        return self.target if self.targeted or aimed else None

    @property
    def shrinking(self) -> Shrinking | None:
        """The removal of channels from the network while it trains; None where nothing is removed."""
        return self.conv.axes().shrinking if isinstance(self.conv, NetworkMethod) else None


def fill(request: TrainRequest, data_name: str, data_size: int | None) -> TrainRequest:
    """The request with every gap filled from its recipe, or from the one that suits the data.

    An era or learning-rate drops that come from the recipe keep their place when `epochs` is overridden: they are
    scaled. Raises BadOption for values out of range.
    """
    compression = request.method.partition(":")[0]
    if compression in CHANNEL_METHODS.names() and compression not in TRAINING_METHODS.names():
        raise BadOption(
            f"--method {compression} compresses a network that is trained: starfire prune-mask CHECKPOINT --method "
            f"{compression}"
        )
    if request.values is not None and (request.method, request.target) == (TrainRequest.method, TrainRequest.target):
        request = dataclasses.replace(request, method="dense")  # shared values are of weights that stay
    name, recipe = recipe_for(request.recipe, data_name, data_size)
    method = request.method.partition(":")[0]
    epochs = recipe.epochs if request.epochs is None else request.epochs
    scale = epochs / recipe.epochs
    era = era_of(request, recipe, epochs)
    schedule = request.lr_schedule or ("step" if request.lr_drops else recipe.schedule)
    drops = tuple(d * scale for d in recipe.lr_drops) if request.lr_drops is None else request.lr_drops
    taken = {
        k: getattr(recipe, k)
        for k in (
            *("model", "batch_size", "optimizer", "lr", "momentum", "nesterov", "weight_decay"),
            *("label_smoothing", "image_size", "augment"),
        )
        if getattr(request, k) is None
    }
    if request.recipe is None and recipe.data != data_name:
        taken.pop("image_size", None)  # a recipe that only stands in: the data know their own size best
    if request.values is not None and "lr" in taken and (request.optimizer or recipe.optimizer) == "sgd":
        taken["lr"] = recipe.lr * _OF_SHARED
    warmup = min(recipe.warmup, epochs / 4) if request.warmup is None else request.warmup
    filled = dataclasses.replace(
        request, epochs=epochs, era=era, lr_schedule=schedule, lr_drops=drops, warmup=warmup, recipe=name, **taken
    )
    # The cap makes a network far sparser than its target, so it comes only with a recipe that was asked for by name.
    if "max_nonzero" not in request.method and request.max_nonzero is None and request.recipe is not None:
        filled = dataclasses.replace(filled, max_nonzero=recipe.max_nonzero.get(method))
    check(filled)
    return filled


def resolve_batch_size(request: TrainRequest, given: frozenset[str], ranks: int) -> tuple[TrainRequest, frozenset[str]]:
    """The request, and what of it was given, with `--batch-size-per-device` turned into a batch size for all ranks."""
    each = request.batch_size_per_device
    if each is None:
        return request, given
    if request.batch_size is not None:
        raise BadOption(
            f"--batch-size {request.batch_size} is of all processes together, --batch-size-per-device {each} of one; "
            "give one of the two"
        )
    return (
        dataclasses.replace(request, batch_size=each * ranks, batch_size_per_device=None),
        given - {"batch_size_per_device"} | {"batch_size"},
    )


def check(request: TrainRequest) -> None:
    """Raises BadOption for the first value that cannot mean anything; `request` is filled."""
    if request.weights is not None and request.init is None:
        raise BadOption(f"--weights {request.weights} says which network of --init CHECKPOINT to start from; give both")
    options.check(request)
    if request.accumulate > (request.batch_size or 1):
        raise out_of_range(TrainRequest, "accumulate", request.accumulate)
    if request.warmup is not None and request.warmup > (request.epochs or 1):
        raise out_of_range(TrainRequest, "warmup", request.warmup)
    if request.init is None and request.init_zeros != TrainRequest.init_zeros:
        raise BadOption(f"--init-zeros {request.init_zeros} is about the weights of --init FILE, which is not given")
    for drop in request.lr_drops or ():
        if not 0 < drop < LARGEST:
            raise BadOption(f"--lr-drops {drop:g}: a drop comes after an epoch, such as 30,60")


def era_of(request: TrainRequest, recipe: Recipe, epochs: int) -> str:
    """The era of a training of so many epochs: as given, the method's own share of them, or the recipe's, scaled.

    Raises BadOption where one is given, and the method has none.
    """
    method = TRAINING_METHODS.build(request.method)
    if isinstance(method, NetworkMethod) and method.axes().rounds is not None:
        if request.era is not None:
            raise BadOption(f"--era {request.era}: --method {request.method} prunes between rounds of --epochs each")
        return "0:0"
    if isinstance(method, NetworkMethod) and not method.axes().has_era:
        if request.era is not None:
            raise BadOption(
                f"--era {request.era}: --method {request.method} makes its mask before the first step, for good"
            )
        return "0:0"
    if request.era is not None:
        return request.era
    span = method.axes().span if isinstance(method, NetworkMethod) else None
    if span is not None:
        return f"{span[0] * epochs:g}:{span[1] * epochs:g}"
    first, last = recipe.eras.get(request.method.partition(":")[0], recipe.eras[""]).split(":")
    return ":".join(f"{float(x) * epochs / recipe.epochs:g}" for x in (first, last))


def pruning_of(request: TrainRequest, methods: Family[Method | NetworkMethod] = TRAINING_METHODS) -> Pruning:
    """The methods behind `--method`, `--fc`, `--max-nonzero`; the former is one of `methods`. Raises BadOption."""
    spec = request.method
    if request.max_nonzero is not None:
        if spec.partition(":")[0] not in ("window", "intra", "inter"):
            raise BadOption(f"--max-nonzero {request.max_nonzero} caps windows, and --method {spec} prunes none")
        if "max_nonzero" in spec:
            raise BadOption(f"--max-nonzero {request.max_nonzero} and --method {spec} both set the cap; give one")
        spec += f"{',' if ':' in spec else ':'}max_nonzero={request.max_nonzero}"
    name = spec.partition(":")[0]
    if name in TRAINING_METHODS.names() and name not in methods.names():
        raise only_trains(name)
    conv = methods.build(spec)
    if methods is TRAINING_METHODS:
        refuse_unread(conv, spec, "train")
    if isinstance(conv, NetworkMethod):
        return _of_network(conv, request)
    # `--method dense` is the baseline: unless asked otherwise its linear layers stay dense as well.
    fc = "dense" if spec == "dense" and request.fc == TrainRequest.fc else request.fc
    linear = LINEAR_METHODS.build(fc)
    target = 0.0 if spec == fc == "dense" else request.target
    codebook = None if request.values is None else parse("--values", request.values)
    if codebook is not None and target:
        raise _prunes(request, f"--method {spec} --fc {fc} prunes to {target:g}")
    if codebook is not None and request.compact_state:
        raise BadOption(f"--compact-state does not go with --values {request.values}, which keeps less state already")
    return Pruning(
        conv=conv,
        linear=linear,
        target=target,
        method_spec=METHODS.spec(conv),
        fc_spec=METHODS.spec(linear),
        codebook=codebook,
    )


def only_trains(name: str) -> BadOption:
    """The error for a training method where a trained network is to be pruned."""
    known = sorted({*ONESHOT_METHODS.names(), *CHANNEL_METHODS.names()})
    return BadOption(
        f"--method {name} trains; a trained network is pruned with: {', '.join(known)}; --method dense --target 0 "
        "--shrink removes what training has left dead"
    )


def _of_network(method: NetworkMethod, request: TrainRequest) -> Pruning:
    """A method that takes linear layers as well; `--fc dense` leaves them alone."""
    spec = METHODS.spec(method)
    if request.ramp != TrainRequest.ramp or request.mask_every != TrainRequest.mask_every:
        option = f"--ramp {request.ramp}" if request.ramp != TrainRequest.ramp else f"--mask-every {request.mask_every}"
        raise BadOption(f"{option} is for methods that prune layer by layer; {spec} has options of its own for that")
    if request.fc not in (TrainRequest.fc, "dense", request.method, spec):
        raise BadOption(f"--fc {request.fc}: --method {spec} prunes linear layers too; --fc dense leaves them alone")
    axes = method.axes()
    if request.values is not None:
        raise _prunes(request, f"--method {spec} prunes")
    if request.compact_state and not axes.monotone:
        raise BadOption(f"--compact-state keeps nothing of dead weights, and --method {spec} brings some back")
    linear = LINEAR_METHODS.build("dense") if request.fc == "dense" else method
    # A target that nothing looks at must not read as nothing to do.
    target = request.target if axes.targeted or axes.aimed else request.target or TrainRequest.target
    return Pruning(conv=method, linear=linear, target=target, method_spec=spec, fc_spec=METHODS.spec(linear))


def refuse_unshrinkable(request: TrainRequest, net: nn.Module) -> None:
    """Raises BadOption where channels cannot be removed while the network trains."""
    if request.compact_state:
        raise BadOption(f"--compact-state is for masks that are fixed, and --method {request.method} removes channels")
    assert request.era is not None
    first, last = (float(part) for part in request.era.split(":"))
    method = TRAINING_METHODS.build(request.method)
    shrinking = method.axes().shrinking if isinstance(method, NetworkMethod) else None
    if shrinking is not None and (shrinking.interval or 0) > last - first:
        raise BadOption(
            f"--method {request.method}: every {shrinking.interval} epochs is never in an era of {last - first:g}; at "
            f"most interval={math.floor(last - first)}"
        )
    try:
        trace(net)
    except StarfireError as error:
        raise BadOption(f"--method {request.method} removes channels while it trains, and {error}") from None


def _prunes(request: TrainRequest, what: str) -> BadOption:
    return BadOption(
        f"--values {request.values} is for weights that stay, and {what}; prune first, then train --init PRUNED "
        "--method dense with it"
    )


def era_steps(request: TrainRequest, steps_per_epoch: int) -> tuple[int, int]:
    """The filled request's era in optimizer steps. Raises BadOption."""
    assert request.era is not None and request.epochs is not None
    return parse_era(request.era, request.epochs, steps_per_epoch)
