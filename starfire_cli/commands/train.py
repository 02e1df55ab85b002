"""The command `starfire train`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import typer

from starfire_cli.commands.options import (
    Deterministic,
    Device,
    FcSpec,
    Json,
    KeepDense,
    MaxNonzero,
    Mean,
    MethodSpec,
    Only,
    Seed,
    SkipCorrupt,
    Std,
    Target,
    Workers,
)
from starfire_cli.commands.train_options import (
    Accumulate,
    Adversarial,
    Amp,
    AmpDtype,
    Augment,
    BatchSize,
    BatchSizePerDevice,
    Betas,
    ChannelsLast,
    ClipGrad,
    CompactState,
    Compile,
    CudaGraphs,
    Data,
    DryRun,
    Eliminate,
    Ema,
    Epochs,
    Era,
    EvalBatchSize,
    ImageSize,
    Init,
    InitZeros,
    Kernels,
    LabelSmoothing,
    LimitTrain,
    LimitVal,
    Logger,
    Lr,
    LrDropFactor,
    LrDrops,
    LrSchedule,
    MaskEvery,
    MaxSteps,
    MinLr,
    Model,
    Momentum,
    Name,
    Nesterov,
    NormWeightDecay,
    Optimizer,
    Out,
    Quiet,
    Ramp,
    Recipe,
    Resume,
    SaveEvery,
    SplitSeed,
    SyncBn,
    ValFraction,
    Warmup,
    WeightDecay,
    Weights,
)
from starfire_cli.errors import BadOption
from starfire_cli.values import parse_list, parse_number


def train(
    context: typer.Context,
    method: MethodSpec = "window",
    target: Target = 0.6,
    era: Era = None,
    ramp: Ramp = "linear",
    mask_every: MaskEvery = 1,
    max_nonzero: MaxNonzero = None,
    fc: FcSpec = "fine",
    keep_dense: KeepDense = None,
    only: Only = None,
    eliminate: Eliminate = False,
    data: Data = None,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    augment: Augment = None,
    val_fraction: ValFraction = 0.2,
    split_seed: SplitSeed = 0,
    limit_train: LimitTrain = None,
    limit_val: LimitVal = None,
    skip_corrupt: SkipCorrupt = False,
    workers: Workers = 2,
    model: Model = None,
    recipe: Recipe = None,
    init: Init = None,
    init_zeros: InitZeros = "dead",
    weights: Weights = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    batch_size_per_device: BatchSizePerDevice = None,
    eval_batch_size: EvalBatchSize = None,
    accumulate: Accumulate = 1,
    optimizer: Optimizer = None,
    lr: Lr = None,
    lr_schedule: LrSchedule = None,
    lr_drops: LrDrops = None,
    lr_drop_factor: LrDropFactor = 0.1,
    min_lr: MinLr = 0.0,
    warmup: Warmup = None,
    momentum: Momentum = None,
    nesterov: Nesterov = None,
    betas: Betas = "0.9,0.999",
    weight_decay: WeightDecay = None,
    norm_weight_decay: NormWeightDecay = None,
    clip_grad: ClipGrad = None,
    label_smoothing: LabelSmoothing = None,
    ema: Ema = None,
    adversarial: Adversarial = None,
    device: Device = "auto",
    amp: Amp = None,
    amp_dtype: AmpDtype = "bf16",
    sync_bn: SyncBn = False,
    compact_state: CompactState = False,
    compile: Compile = False,
    cuda_graphs: CudaGraphs = False,
    channels_last: ChannelsLast = None,
    kernels: Kernels = "auto",
    seed: Seed = 0,
    deterministic: Deterministic = False,
    out: Out = Path("runs"),
    name: Name = None,
    resume: Resume = None,
    save_every: SaveEvery = None,
    max_steps: MaxSteps = None,
    dry_run: DryRun = False,
    logger: Logger = "none",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a sparse network: dense start, pruning era, fixed mask. With no options: on handwritten digits."""
    from starfire_cli import runtime
    from starfire_cli.report.train import decoding_display, display
    from starfire_cli.values import parse_channels
    from starfire_cli.workflows.train.loop import train as run_training
    from starfire_cli.workflows.train.request import TrainRequest
    from starfire_cli.workflows.train.tensorboard import logged

    values = dict(context.params)
    for key in ("quiet", "as_json", "logger"):
        del values[key]
    values |= {
        "keep_dense": tuple(keep_dense or ()),
        "only": tuple(only or ()),
        "lr_drops": _numbers("--lr-drops", lr_drops),
        "betas": _pair("--betas", betas),
        "mean": parse_channels(mean, "--mean"),
        "std": parse_channels(std, "--std"),
    }
    given = frozenset(k for k in values if _was_given(context, k))
    request = TrainRequest(**values, command=shlex.join(["starfire", *sys.argv[1:]]))
    silent = runtime.world().rank > 0  # the first of several processes speaks for all
    records = run_training(request, given, decoding=decoding_display(to_stderr=as_json, quiet=quiet))
    end = display(logged(records, "none" if silent else logger), quiet=quiet, to_stderr=as_json, silent=silent)
    if as_json and end.summary is not None:
        typer.echo(json.dumps(end.summary))
    if end.exit_code:
        raise typer.Exit(end.exit_code)


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    return None if text is None else parse_list(option, text, parse_number, "30,60")


def _pair(option: str, text: str) -> tuple[float, float]:
    numbers = parse_list(option, text, parse_number, "0.9,0.999")
    if len(numbers) != 2 or not all(0 <= n < 1 for n in numbers):
        raise BadOption(f"{option} {text!r} is not two numbers from 0 to below 1, such as 0.9,0.999")
    return numbers[0], numbers[1]
