"""The request of `starfire train`, the recipe that fills its gaps, and the checks of its values."""

from __future__ import annotations

import dataclasses
import math
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from starfire_cli.damage import Damaged
from starfire_cli.errors import BadOption, StarfireError, unknown
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Method
from starfire_cli.pruning.schedule import RAMPS, parse_era
from starfire_cli.values import LARGEST, LARGEST_WHOLE, RANGES
from starfire_cli.workflows.train.optim import OPTIMIZERS, SCHEDULES
from starfire_cli.workflows.train.recipes import recipe_for


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """One call of `starfire train`; None means "as the recipe says". Units: epochs, images, fractions of 1."""

    method: str = "window"
    target: float = 0.6
    era: str | None = None
    ramp: str = "linear"
    mask_every: int = 1
    max_nonzero: int | None = None
    fc: str = "fine"
    keep_dense: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    eliminate: bool = False
    data: str | None = None
    model: str | None = None
    recipe: str | None = None
    image_size: int | None = None
    augment: str | None = None
    val_fraction: float = 0.2
    split_seed: int = 0
    skip_corrupt: bool = False
    limit_train: int | None = None
    limit_val: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    batch_size_per_device: int | None = None
    eval_batch_size: int | None = None
    accumulate: int = 1
    optimizer: str | None = None
    lr: float | None = None
    lr_schedule: str | None = None
    lr_drops: tuple[float, ...] | None = None
    lr_drop_factor: float = 0.1
    min_lr: float = 0.0
    warmup: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float | None = None
    norm_weight_decay: float | None = None
    clip_grad: float | None = None
    label_smoothing: float | None = None
    ema: float | None = None
    adversarial: str | None = None
    amp: bool | None = None
    amp_dtype: str = "bf16"
    sync_bn: bool = False
    compact_state: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    channels_last: bool | None = None
    kernels: str = "auto"
    device: str = "auto"
    workers: int = 2
    seed: int = 0
    deterministic: bool = False
    out: Path = Path("runs")
    name: str | None = None
    resume: Path | None = None
    init: Path | None = None
    init_zeros: str = "dead"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    weights: str | None = None
    save_every: int | None = None
    max_steps: int | None = None
    dry_run: bool = False
    command: str = "starfire train"

    def as_config(self) -> dict[str, Any]:
        """Plain values for config.json and checkpoints; what only this call means is left out."""
        plain = dataclasses.asdict(self)
        for key in ("resume", "max_steps", "dry_run", "command", "batch_size_per_device"):
            del plain[key]
        for key in (
            "init_zeros",
            "mean",
            "std",
            "weights",
        ):  # where they mean nothing, runs are described as ever
            if plain[key] == getattr(TrainRequest, key):
                del plain[key]
        return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TrainRequest:
        """The inverse of `as_config`.

        Raises StarfireError for settings that this version does not know, Damaged for a value of another type.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        if strange := sorted(set(config) - set(known)):
            raise StarfireError(
                f"the run was made by another version of starfire: unknown settings {', '.join(strange)}"
            )
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        for key in ("out", "init"):
            values[key] = Path(values[key]) if values.get(key) else known[key].default
        hints = get_type_hints(cls)
        for key, value in values.items():
            if not _is_a(value, hints[key]):
                raise Damaged(f"its setting {key} is {str(value)[:60]!r}")
        return cls(**values)


def _is_a(value: object, hint: Any) -> bool:
    """Whether a value is what the type of a field of `TrainRequest` says."""
    kinds = get_args(hint)
    if get_origin(hint) is types.UnionType:
        return any(_is_a(value, kind) for kind in kinds)
    if get_origin(hint) is tuple:
        inside = kinds[:1] * len(value) if isinstance(value, tuple) and ... in kinds else kinds
        return isinstance(value, tuple) and len(value) == len(inside) and all(map(_is_a, value, inside))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The resolved pruning half of a request."""

    conv: Method
    linear: Method
    target: float
    method_spec: str
    fc_spec: str


def fill(request: TrainRequest, data_name: str, data_size: int | None) -> TrainRequest:
    """The request with every gap filled from its recipe, or from the one that suits the data.

    An era or learning-rate drops that come from the recipe keep their place when `epochs` is overridden: they are
    scaled. Raises BadOption for values out of range.
    """
    name, recipe = recipe_for(request.recipe, data_name, data_size)
    method = request.method.partition(":")[0]
    epochs = recipe.epochs if request.epochs is None else request.epochs
    scale = epochs / recipe.epochs
    recipe_era = recipe.eras.get(method, recipe.eras[""]).split(":")
    era = ":".join(f"{float(x) * scale:g}" for x in recipe_era) if request.era is None else request.era
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
    if each < 1:
        raise BadOption(f"--batch-size-per-device {each} is out of range: at least 1")
    return (
        dataclasses.replace(request, batch_size=each * ranks, batch_size_per_device=None),
        given - {"batch_size_per_device"} | {"batch_size"},
    )


def check(request: TrainRequest) -> None:
    """Raises BadOption for the first value that cannot mean anything; `request` is filled."""
    if request.weights is not None and request.init is None:
        raise BadOption(f"--weights {request.weights} says which network of --init CHECKPOINT to start from; give both")
    ranges: list[tuple[str, float | None, float, float, str]] = [
        ("--target", request.target, 0, math.nextafter(1, 0), "the fraction of weights to prune, 0 to below 1"),
        ("--epochs", request.epochs, 1, 10**9, "at least 1"),
        ("--batch-size", request.batch_size, 1, LARGEST_WHOLE, "at least 1"),
        ("--eval-batch-size", request.eval_batch_size, 1, LARGEST_WHOLE, "at least 1"),
        ("--accumulate", request.accumulate, 1, request.batch_size or 1, "1 to the batch size"),
        ("--lr", request.lr, 0, LARGEST, "0 or more"),
        ("--lr-drop-factor", request.lr_drop_factor, 0, 1, "0 to 1"),
        ("--min-lr", request.min_lr, 0, LARGEST, "0 or more"),
        ("--momentum", request.momentum, 0, math.nextafter(1, 0), "0 to below 1"),
        ("--weight-decay", request.weight_decay, 0, LARGEST, "0 or more"),
        ("--norm-weight-decay", request.norm_weight_decay, 0, LARGEST, "0 or more"),
        ("--clip-grad", request.clip_grad, math.nextafter(0, 1), LARGEST, "above 0"),
        ("--label-smoothing", request.label_smoothing, 0, math.nextafter(1, 0), "0 to below 1"),
        ("--ema", request.ema, 0, math.nextafter(1, 0), "a decay such as 0.999"),
        ("--warmup", request.warmup, 0, request.epochs or 1, "epochs, at most as many as there are"),
        ("--val-fraction", request.val_fraction, 1e-9, math.nextafter(1, 0), "between 0 and 1"),
        ("--image-size", request.image_size, 8, RANGES["image_size"][1], "pixels, 8 to 16384"),
        ("--workers", request.workers, *RANGES["workers"]),
        ("--save-every", request.save_every, 1, LARGEST_WHOLE, "steps, at least 1"),
        ("--max-steps", request.max_steps, 1, LARGEST_WHOLE, "steps, at least 1"),
        ("--mask-every", request.mask_every, 1, LARGEST_WHOLE, "steps, at least 1"),
        ("--seed", request.seed, 0, LARGEST_WHOLE, "a whole number, 0 or more"),
        ("--split-seed", request.split_seed, 0, LARGEST_WHOLE, "a whole number, 0 or more"),
        ("--limit-train", request.limit_train, 1, LARGEST_WHOLE, "images, at least 1"),
        ("--limit-val", request.limit_val, 1, LARGEST_WHOLE, "images, at least 1"),
    ]
    for option, value, low, high, words in ranges:
        if value is not None and not low <= value <= high:
            raise BadOption(f"{option} {value:g} is out of range: {words}")
    choices = (
        ("optimizer", request.optimizer, OPTIMIZERS),
        ("--lr-schedule", request.lr_schedule, SCHEDULES),
        ("--ramp", request.ramp, tuple(RAMPS)),
        ("--amp-dtype", request.amp_dtype, ("bf16", "fp16")),
        ("--init-zeros", request.init_zeros, ("dead", "free")),
    )
    for noun, text, names in choices:
        if text not in names:
            raise unknown(noun, str(text), names)
    if request.init is None and request.init_zeros != TrainRequest.init_zeros:
        raise BadOption(f"--init-zeros {request.init_zeros} is about the weights of --init FILE, which is not given")
    for drop in request.lr_drops or ():
        if not 0 < drop < LARGEST:
            raise BadOption(f"--lr-drops {drop:g}: a drop comes after an epoch, such as 30,60")


def pruning_of(request: TrainRequest) -> Pruning:
    """The methods behind `--method`, `--fc`, `--max-nonzero`. Raises BadOption."""
    spec = request.method
    if request.max_nonzero is not None:
        if spec.partition(":")[0] not in ("window", "intra", "inter"):
            raise BadOption(f"--max-nonzero {request.max_nonzero} caps windows, and --method {spec} prunes none")
        if "max_nonzero" in spec:
            raise BadOption(f"--max-nonzero {request.max_nonzero} and --method {spec} both set the cap; give one")
        spec += f"{',' if ':' in spec else ':'}max_nonzero={request.max_nonzero}"
    conv = CONV_METHODS.build(spec)
    # `--method dense` is the baseline: unless asked otherwise its linear layers stay dense as well.
    fc = "dense" if spec == "dense" and request.fc == TrainRequest.fc else request.fc
    linear = LINEAR_METHODS.build(fc)
    target = 0.0 if spec == fc == "dense" else request.target
    return Pruning(
        conv=conv,
        linear=linear,
        target=target,
        method_spec=CONV_METHODS.spec(conv),
        fc_spec=LINEAR_METHODS.spec(linear),
    )


def era_steps(request: TrainRequest, steps_per_epoch: int) -> tuple[int, int]:
    """The filled request's era in optimizer steps. Raises BadOption."""
    assert request.era is not None and request.epochs is not None
    return parse_era(request.era, request.epochs, steps_per_epoch)
