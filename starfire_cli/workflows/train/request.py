"""The request of `starfire train`: its options, their help and ranges, and their way through config.json."""

from __future__ import annotations

import dataclasses
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from starfire_cli.damage import Damaged
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.numbers import parse_list, parse_number
from starfire_cli.options import ABOVE_0, BELOW_1, declared, option
from starfire_cli.workflows.options import (
    DATA_PANEL,
    DEVICE,
    FC,
    IMAGE_SIZE,
    KEEP_DENSE,
    MAX_NONZERO,
    MEAN,
    METHOD,
    ONLY,
    OUTPUT_PANEL,
    PRUNING_PANEL,
    RUNTIME_PANEL,
    SEED,
    SKIP_CORRUPT,
    STD,
    WORKERS,
)

MODEL_PANEL = "Model and recipe"
OPTIM_PANEL = "Optimisation"

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "nadam", "radam", "adagrad")
SCHEDULES = ("step", "cosine", "constant")
_POSITIVE: dict[str, Any] = {"low": 1, "range": "at least 1"}
_STEPS: dict[str, Any] = {"low": 1, "range": "steps, at least 1"}
_IMAGES: dict[str, Any] = {"low": 1, "range": "images, at least 1"}
_NOT_NEGATIVE: dict[str, Any] = {"low": 0, "range": "0 or more"}
_SEED: dict[str, Any] = {"low": 0, "range": "a whole number, 0 or more"}
_SHARE: dict[str, Any] = {"low": 0, "high": BELOW_1, "range": "0 to below 1"}


def _parse_drops(flag: str, text: str) -> tuple[float, ...]:
    return parse_list(flag, text, parse_number, "30,60")


def _parse_betas(flag: str, text: str) -> tuple[float, float]:
    numbers = parse_list(flag, text, parse_number, "0.9,0.999")
    if len(numbers) != 2 or not all(0 <= n < 1 for n in numbers):
        raise BadOption(f"{flag} {text!r} is not two numbers from 0 to below 1, such as 0.9,0.999")
    return numbers[0], numbers[1]


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """One call of `starfire train`; None means "as the recipe says". Units: epochs, images, fractions of 1."""

    method: str = METHOD.default("window")
    target: float = option(
        0.6,
        "The final sparsity threshold, in [0, 1).",
        short="-t",
        metavar="T",
        panel=PRUNING_PANEL,
        low=0,
        high=BELOW_1,
        range="the fraction of weights to prune, 0 to below 1",
    )
    era: str | None = option(
        None,
        "The pruning era in epochs, fractions allowed. Default: the recipe's.",
        metavar="FIRST:LAST",
        panel=PRUNING_PANEL,
    )
    ramp: str = option(
        "linear",
        "How the threshold rises in the era: {choices}.",
        panel=PRUNING_PANEL,
        choices=("linear", "cubic", "cosine"),
    )
    mask_every: int = option(
        1, "Evaluate masks after every N-th step of the era.", metavar="N", panel=PRUNING_PANEL, **_STEPS
    )
    max_nonzero: int | None = MAX_NONZERO.default(None)
    fc: str = FC.default("fine")
    keep_dense: tuple[str, ...] = KEEP_DENSE.default(())
    only: tuple[str, ...] = ONLY.default(())
    eliminate: bool = option(
        False,
        "In the end, prune linear weights that only see dead channels (section 2.1.2).",
        panel=PRUNING_PANEL,
    )

    values: str | None = option(
        None,
        "Layers have few different values: codebook:bits=5 shares at most 32 by k-means and trains these. Nothing is "
        "pruned meanwhile.",
        metavar="SPEC",
        panel=PRUNING_PANEL,
        choices=("codebook",),
        specs=True,
        stored="changed",
    )

    data: str | None = option(
        None,
        "A path whose layout is recognised, a name (digits), NAME:PATH such as cifar10:PATH, or "
        "package.module:callable for a data set of your own. Default: digits.",
        metavar="SPEC",
        panel=DATA_PANEL,
    )
    image_size: int | None = replace(
        IMAGE_SIZE, help="Side of the images the network sees.", low=8, range="pixels, 8 to 16384"
    ).default(None)
    mean: tuple[float, float, float] | None = MEAN.default(None)
    std: tuple[float, float, float] | None = STD.default(None)
    augment: str | None = option(
        None, "auto, none, crop-flip, shift, rrc-flip, ... (docs/data.md).", metavar="SPEC", panel=DATA_PANEL
    )
    val_fraction: float = option(
        0.2,
        "Held out where the data have no validation part of their own.",
        panel=DATA_PANEL,
        low=1e-9,
        high=BELOW_1,
        range="between 0 and 1",
    )
    split_seed: int = option(0, "Of that split.", panel=DATA_PANEL, **_SEED)
    limit_train: int | None = option(
        None, "Train on N images only, for a quick look.", metavar="N", panel=DATA_PANEL, **_IMAGES
    )
    limit_val: int | None = option(None, "Validate on N images only.", metavar="N", panel=DATA_PANEL, **_IMAGES)
    skip_corrupt: bool = SKIP_CORRUPT.default(False)
    workers: int = WORKERS.default(2)

    model: str | None = option(
        None,
        "resnet20 ... 110, resnet50, resnet50-v1, any torchvision classifier, timm:NAME, package.module:callable.",
        short="-m",
        metavar="NAME",
        panel=MODEL_PANEL,
    )
    recipe: str | None = option(
        None,
        "digits, cifar10, tiny-imagenet, imagenet-v1, imagenet-v1.5. Default: what suits the data.",
        metavar="NAME",
        panel=MODEL_PANEL,
    )
    init: Path | None = option(
        None,
        "Start from these weights, on the data they were trained on; what is dead there stays dead.",
        metavar="CKPT",
        panel=MODEL_PANEL,
    )
    init_zeros: str = option(
        "dead",
        "Weights of --init that are zero and have no mask: dead, as pruned ones, or free to train.",
        panel=MODEL_PANEL,
        choices=("dead", "free"),
        stored="changed",
    )
    weights: str | None = option(
        None,
        "Of an --init with several networks: model (what was trained), ema (its average), or a name in the file.",
        metavar="NAME",
        panel=MODEL_PANEL,
        stored="changed",
    )

    epochs: int | None = option(
        None,
        "The recipe's era and drops are scaled along.",
        short="-e",
        metavar="N",
        panel=OPTIM_PANEL,
        low=1,
        high=10**9,
        range="at least 1",
    )
    batch_size: int | None = option(
        None,
        "Images a step, of all processes together; the learning rate is never rescaled.",
        short="-b",
        metavar="N",
        panel=OPTIM_PANEL,
        **_POSITIVE,
    )
    batch_size_per_device: int | None = option(
        None,
        "Images a step of each process, instead.",
        metavar="N",
        panel=OPTIM_PANEL,
        stored="never",
        **_POSITIVE,
    )
    eval_batch_size: int | None = option(
        None, "Images at a time in validation.", metavar="N", panel=OPTIM_PANEL, **_POSITIVE
    )
    accumulate: int = option(
        1,
        "Work through a batch in N parts, to save memory.",
        metavar="N",
        panel=OPTIM_PANEL,
        low=1,
        range="1 to the batch size",
    )
    optimizer: str | None = option(
        None, "{choices}.", flags=("--optimizer", "--opt"), panel=OPTIM_PANEL, choices=OPTIMIZERS
    )
    lr: float | None = option(None, "The learning rate after warm-up.", panel=OPTIM_PANEL, **_NOT_NEGATIVE)
    lr_schedule: str | None = option(
        None, "{choices}.", flags=("--lr-schedule", "--sched"), panel=OPTIM_PANEL, choices=SCHEDULES
    )
    lr_drops: tuple[float, ...] | None = option(
        None,
        "Epochs after which the rate falls (implies the step schedule).",
        metavar="E,E,...",
        panel=OPTIM_PANEL,
        parse=_parse_drops,
    )
    lr_drop_factor: float = option(0.1, "What it is multiplied with.", panel=OPTIM_PANEL, low=0, high=1, range="0 to 1")
    min_lr: float = option(0.0, "Where the cosine schedule ends.", panel=OPTIM_PANEL, **_NOT_NEGATIVE)
    warmup: float | None = option(
        None,
        "Linear warm-up.",
        metavar="EPOCHS",
        panel=OPTIM_PANEL,
        low=0,
        range="epochs, at most as many as there are",
    )
    momentum: float | None = option(None, "Of sgd and rmsprop.", panel=OPTIM_PANEL, **_SHARE)
    nesterov: bool | None = option(None, "For sgd.", flags=("--nesterov/--no-nesterov",), panel=OPTIM_PANEL)
    betas: tuple[float, float] = option(
        (0.9, 0.999), "Of the Adam family.", metavar="B1,B2", panel=OPTIM_PANEL, parse=_parse_betas
    )
    weight_decay: float | None = option(
        None, "Decoupled only in adamw.", flags=("--weight-decay", "--wd"), panel=OPTIM_PANEL, **_NOT_NEGATIVE
    )
    norm_weight_decay: float | None = option(
        None, "Of biases and BatchNorm, if not the same.", panel=OPTIM_PANEL, **_NOT_NEGATIVE
    )
    clip_grad: float | None = option(
        None,
        "Clip gradients to this norm (live weights only).",
        metavar="NORM",
        panel=OPTIM_PANEL,
        low=ABOVE_0,
        range="above 0",
    )
    label_smoothing: float | None = option(None, "In the training loss.", panel=OPTIM_PANEL, **_SHARE)
    ema: float | None = option(
        None,
        "Also average the weights; the average is validated and saved.",
        metavar="DECAY",
        panel=OPTIM_PANEL,
        low=0,
        high=BELOW_1,
        range="a decay such as 0.999",
    )
    adversarial: str | None = option(
        None, "Train on attacked images: fgsm:eps=8/255 or pgd:eps=8/255,steps=7.", metavar="SPEC", panel=OPTIM_PANEL
    )

    device: str = DEVICE.default("auto")
    amp: bool | None = option(
        None, "Mixed precision. Default: on CUDA only.", flags=("--amp/--no-amp",), panel=RUNTIME_PANEL
    )
    amp_dtype: str = option("bf16", "{choices}.", panel=RUNTIME_PANEL, choices=("bf16", "fp16"))
    sync_bn: bool = option(False, "BatchNorm over the images of all processes (CUDA).", panel=RUNTIME_PANEL)
    compact_state: bool = option(
        False, "After the era, keep optimizer state for live weights only.", panel=RUNTIME_PANEL
    )
    compile: bool = option(False, "torch.compile the model.", flags=("--compile/--no-compile",), panel=RUNTIME_PANEL)
    sparse_compute: str = option(
        "auto",
        "On a CPU, compute with live weights only: {choices}. auto: from when on it is measured to be faster.",
        panel=RUNTIME_PANEL,
        choices=("auto", "on", "off"),
        stored="changed",
    )
    cuda_graphs: str = option(
        "auto",
        "Replay whole training steps as CUDA graphs: {choices}; several times as fast where images are small. auto: "
        "where it works. The flag alone means on.",
        panel=RUNTIME_PANEL,
        choices=("auto", "on", "off"),
        bare="on",
    )
    channels_last: bool | None = option(
        None,
        "Memory layout. Default: on CPU and CUDA, where it is faster.",
        flags=("--channels-last/--no-channels-last",),
        panel=RUNTIME_PANEL,
    )
    kernels: str = option(
        "auto",
        "Who computes the masks, all to the same bits: auto, torch, numba, triton, triton:graphs=false.",
        metavar="NAME",
        panel=RUNTIME_PANEL,
    )
    seed: int = replace(SEED, **_SEED).default(0)
    deterministic: bool = option(False, "Only kernels that give the same bits every time.", panel=RUNTIME_PANEL)

    out: Path = option(Path("runs"), "Where run folders go.", short="-o", metavar="DIR", panel=OUTPUT_PANEL)
    name: str | None = option(None, "Of the run folder. Default: data, method and target.", panel=OUTPUT_PANEL)
    resume: Path | None = option(
        None,
        "Go on with a run (folder, .pt file, or auto: the newest; a new one if there is none), to the bit.",
        metavar="PATH",
        panel=OUTPUT_PANEL,
        stored="never",
    )
    save_every: int | None = option(None, "Save within an epoch, too.", metavar="STEPS", panel=OUTPUT_PANEL, **_STEPS)
    max_steps: int | None = option(
        None,
        "Stop and save after N steps in all; --resume goes on.",
        metavar="N",
        panel=OUTPUT_PANEL,
        stored="never",
        **_STEPS,
    )
    dry_run: bool = option(
        False, "Print what would be done, layer by layer, and train nothing.", panel=OUTPUT_PANEL, stored="never"
    )
    command: str = "starfire train"

    def as_config(self) -> dict[str, Any]:
        """Plain values for config.json and checkpoints; what only this call means is left out."""
        plain = dataclasses.asdict(self)
        del plain["command"]
        for field, said in declared(TrainRequest):
            # Where some options mean nothing, runs are described as they were before these came.
            if said.stored == "never" or (said.stored == "changed" and plain[field.name] == field.default):
                del plain[field.name]
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
        if isinstance(values.get("cuda_graphs"), bool):  # as runs of earlier versions have it
            values["cuda_graphs"] = "on" if values["cuda_graphs"] else "off"
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
