"""The options of `starfire train`, in the groups of `--help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from starfire_cli.commands.options import DATA_PANEL, OUTPUT_PANEL, PRUNING_PANEL, RUNTIME_PANEL

MODEL_PANEL = "Model and recipe"
OPTIM_PANEL = "Optimisation"


def _opt(*names: str, panel: str, help: str, show_default: bool = False, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=show_default, metavar=metavar)


Era = Annotated[
    str | None,
    _opt(
        "--era",
        metavar="FIRST:LAST",
        panel=PRUNING_PANEL,
        help="The pruning era in epochs, fractions allowed. Default: the recipe's.",
    ),
]
Ramp = Annotated[
    str,
    _opt(
        "--ramp",
        panel=PRUNING_PANEL,
        help="How the threshold rises in the era: linear, cubic or cosine.",
        show_default=True,
    ),
]
MaskEvery = Annotated[
    int,
    _opt(
        "--mask-every",
        metavar="N",
        panel=PRUNING_PANEL,
        help="Evaluate masks after every N-th step of the era.",
        show_default=True,
    ),
]
Eliminate = Annotated[
    bool,
    _opt(
        "--eliminate",
        panel=PRUNING_PANEL,
        help="In the end, prune linear weights that only see dead channels (section 2.1.2).",
    ),
]
Data = Annotated[
    str | None,
    _opt(
        "--data",
        metavar="SPEC",
        panel=DATA_PANEL,
        help="A path whose layout is recognised, a name (digits), or NAME:PATH such as cifar10:PATH. Default: digits.",
    ),
]
ImageSize = Annotated[
    int | None, _opt("--image-size", metavar="PX", panel=DATA_PANEL, help="Side of the images the network sees.")
]
Augment = Annotated[
    str | None,
    _opt(
        "--augment",
        metavar="SPEC",
        panel=DATA_PANEL,
        help="auto, none, crop-flip, shift, rrc-flip, ... (docs/data.md).",
    ),
]
ValFraction = Annotated[
    float,
    _opt(
        "--val-fraction",
        panel=DATA_PANEL,
        help="Held out where the data have no validation part of their own.",
        show_default=True,
    ),
]
SplitSeed = Annotated[int, _opt("--split-seed", panel=DATA_PANEL, help="Of that split.", show_default=True)]
LimitTrain = Annotated[
    int | None, _opt("--limit-train", metavar="N", panel=DATA_PANEL, help="Train on N images only, for a quick look.")
]
LimitVal = Annotated[int | None, _opt("--limit-val", metavar="N", panel=DATA_PANEL, help="Validate on N images only.")]
Model = Annotated[
    str | None,
    _opt(
        "--model",
        "-m",
        metavar="NAME",
        panel=MODEL_PANEL,
        help="resnet20 ... 110, resnet50, resnet50-v1, any torchvision classifier, timm:NAME, package.module:callable.",
    ),
]
Recipe = Annotated[
    str | None,
    _opt(
        "--recipe",
        metavar="NAME",
        panel=MODEL_PANEL,
        help="digits, cifar10, tiny-imagenet, imagenet-v1, imagenet-v1.5. Default: what suits the data.",
    ),
]
Init = Annotated[
    Path | None,
    _opt(
        "--init",
        metavar="CKPT",
        panel=MODEL_PANEL,
        help="Start from these weights, on the data they were trained on; what is dead there stays dead.",
    ),
]
InitZeros = Annotated[
    str,
    typer.Option(
        "--init-zeros",
        help="Weights of --init that are zero and have no mask: dead, as pruned ones, or free to train.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Weights = Annotated[
    str | None,
    _opt(
        "--weights",
        metavar="NAME",
        panel=MODEL_PANEL,
        help="Of an --init with several networks: model (what was trained), ema (its average), or a name in the file.",
    ),
]
Epochs = Annotated[
    int | None,
    _opt("--epochs", "-e", metavar="N", panel=OPTIM_PANEL, help="The recipe's era and drops are scaled along."),
]
BatchSize = Annotated[
    int | None,
    _opt(
        "--batch-size",
        "-b",
        metavar="N",
        panel=OPTIM_PANEL,
        help="Images a step, of all processes together; the learning rate is never rescaled.",
    ),
]
BatchSizePerDevice = Annotated[
    int | None,
    _opt("--batch-size-per-device", metavar="N", panel=OPTIM_PANEL, help="Images a step of each process, instead."),
]
EvalBatchSize = Annotated[
    int | None, _opt("--eval-batch-size", metavar="N", panel=OPTIM_PANEL, help="Images at a time in validation.")
]
Accumulate = Annotated[
    int,
    _opt(
        "--accumulate",
        metavar="N",
        panel=OPTIM_PANEL,
        help="Work through a batch in N parts, to save memory.",
        show_default=True,
    ),
]
Optimizer = Annotated[
    str | None,
    _opt("--optimizer", "--opt", panel=OPTIM_PANEL, help="sgd, adam, adamw, rmsprop, nadam, radam, adagrad."),
]
Lr = Annotated[float | None, _opt("--lr", panel=OPTIM_PANEL, help="The learning rate after warm-up.")]
LrSchedule = Annotated[
    str | None, _opt("--lr-schedule", "--sched", panel=OPTIM_PANEL, help="step, cosine or constant.")
]
LrDrops = Annotated[
    str | None,
    _opt(
        "--lr-drops",
        metavar="E,E,...",
        panel=OPTIM_PANEL,
        help="Epochs after which the rate falls (implies the step schedule).",
    ),
]
LrDropFactor = Annotated[
    float, _opt("--lr-drop-factor", panel=OPTIM_PANEL, help="What it is multiplied with.", show_default=True)
]
MinLr = Annotated[float, _opt("--min-lr", panel=OPTIM_PANEL, help="Where the cosine schedule ends.", show_default=True)]
Warmup = Annotated[float | None, _opt("--warmup", metavar="EPOCHS", panel=OPTIM_PANEL, help="Linear warm-up.")]
Momentum = Annotated[float | None, _opt("--momentum", panel=OPTIM_PANEL, help="Of sgd and rmsprop.")]
Nesterov = Annotated[bool | None, _opt("--nesterov/--no-nesterov", panel=OPTIM_PANEL, help="For sgd.")]
Betas = Annotated[
    str, _opt("--betas", metavar="B1,B2", panel=OPTIM_PANEL, help="Of the Adam family.", show_default=True)
]
WeightDecay = Annotated[
    float | None, _opt("--weight-decay", "--wd", panel=OPTIM_PANEL, help="Decoupled only in adamw.")
]
NormWeightDecay = Annotated[
    float | None, _opt("--norm-weight-decay", panel=OPTIM_PANEL, help="Of biases and BatchNorm, if not the same.")
]
ClipGrad = Annotated[
    float | None,
    _opt("--clip-grad", metavar="NORM", panel=OPTIM_PANEL, help="Clip gradients to this norm (live weights only)."),
]
LabelSmoothing = Annotated[float | None, _opt("--label-smoothing", panel=OPTIM_PANEL, help="In the training loss.")]
Ema = Annotated[
    float | None,
    _opt(
        "--ema",
        metavar="DECAY",
        panel=OPTIM_PANEL,
        help="Also average the weights; the average is validated and saved.",
    ),
]
Adversarial = Annotated[
    str | None,
    _opt(
        "--adversarial",
        metavar="SPEC",
        panel=OPTIM_PANEL,
        help="Train on attacked images: fgsm:eps=8/255 or pgd:eps=8/255,steps=7.",
    ),
]
Amp = Annotated[
    bool | None, _opt("--amp/--no-amp", panel=RUNTIME_PANEL, help="Mixed precision. Default: on CUDA only.")
]
AmpDtype = Annotated[str, _opt("--amp-dtype", panel=RUNTIME_PANEL, help="bf16 or fp16.", show_default=True)]
SyncBn = Annotated[
    bool,
    _opt("--sync-bn", panel=RUNTIME_PANEL, help="BatchNorm over the images of all processes (CUDA)."),
]
CompactState = Annotated[
    bool,
    _opt("--compact-state", panel=RUNTIME_PANEL, help="After the era, keep optimizer state for live weights only."),
]
Compile = Annotated[bool, _opt("--compile/--no-compile", panel=RUNTIME_PANEL, help="torch.compile the model.")]
CudaGraphs = Annotated[
    bool,
    _opt(
        "--cuda-graphs",
        panel=RUNTIME_PANEL,
        help="Replay whole training steps as CUDA graphs: several times as fast where images are small.",
    ),
]
ChannelsLast = Annotated[
    bool | None,
    _opt(
        "--channels-last/--no-channels-last",
        panel=RUNTIME_PANEL,
        help="Memory layout. Default: on CPU and CUDA, where it is faster.",
    ),
]
Kernels = Annotated[
    str,
    _opt(
        "--kernels",
        metavar="NAME",
        panel=RUNTIME_PANEL,
        help="Who computes the masks, all to the same bits: auto, torch, numba, triton, triton:graphs=false.",
        show_default=True,
    ),
]
Out = Annotated[
    Path, _opt("--out", "-o", metavar="DIR", panel=OUTPUT_PANEL, help="Where run folders go.", show_default=True)
]
Name = Annotated[
    str | None, _opt("--name", panel=OUTPUT_PANEL, help="Of the run folder. Default: data, method and target.")
]
Resume = Annotated[
    Path | None,
    _opt(
        "--resume",
        metavar="PATH",
        panel=OUTPUT_PANEL,
        help="Go on with a run (folder, .pt file, or auto: the newest; a new one if there is none), to the bit.",
    ),
]
SaveEvery = Annotated[
    int | None, _opt("--save-every", metavar="STEPS", panel=OUTPUT_PANEL, help="Save within an epoch, too.")
]
MaxSteps = Annotated[
    int | None,
    _opt("--max-steps", metavar="N", panel=OUTPUT_PANEL, help="Stop and save after N steps in all; --resume goes on."),
]
DryRun = Annotated[
    bool, _opt("--dry-run", panel=OUTPUT_PANEL, help="Print what would be done, layer by layer, and train nothing.")
]
Quiet = Annotated[bool, _opt("--quiet", "-q", panel=OUTPUT_PANEL, help="Print the closing summary only.")]

Logger = Annotated[
    str,
    _opt(
        "--logger",
        panel=OUTPUT_PANEL,
        help="Also write the metrics for another viewer: none or tensorboard.",
        show_default=True,
    ),
]
