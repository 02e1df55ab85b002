"""The options of `starfire attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starfire_cli.commands.options import DATA_PANEL, OUTPUT_PANEL, RUNTIME_PANEL
from starfire_cli.registry import Family

ATTACK_PANEL = "Attack"
_NAMES = ", ".join(Family[object]("attack", "starfire_cli.attacks").names())

AttackSpec = Annotated[
    str,
    typer.Option(
        "--attack",
        "-a",
        metavar="SPEC",
        help=f"One of {_NAMES}, with options as in pgd:steps=20.",
        rich_help_panel=ATTACK_PANEL,
    ),
]
Eps = Annotated[
    str | None,
    typer.Option(
        "--eps",
        metavar="LIST",
        help="Sizes in pixels of [0, 1]: 0,0.01,0.05, fractions (8/255), ranges (0:0.1:0.01). "
        "Default: 0,0.01,0.05; l2: 0,0.25,0.5,1.",
        rich_help_panel=ATTACK_PANEL,
        show_default=False,
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against",
        metavar="CHECKPOINT",
        help="Attack this network too, on the same images, and test the difference.",
        rich_help_panel=ATTACK_PANEL,
        show_default=False,
    ),
]
Transfer = Annotated[
    bool,
    typer.Option(
        "--transfer",
        help="With --against: show each network the images made against the other.",
        rich_help_panel=ATTACK_PANEL,
    ),
]
Norm = Annotated[
    str | None,
    typer.Option("--norm", metavar="NORM", help="linf or l2.", rich_help_panel=ATTACK_PANEL, show_default=False),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", help="Gradients a start.", rich_help_panel=ATTACK_PANEL, show_default=False),
]
StepSize = Annotated[
    str | None,
    typer.Option(
        "--step-size",
        metavar="X",
        help="Length of a step, such as 2/255. Default: 2.5 eps / steps.",
        rich_help_panel=ATTACK_PANEL,
        show_default=False,
    ),
]
Restarts = Annotated[
    int | None,
    typer.Option(
        "--restarts",
        metavar="N",
        help="Random starts an image; the worst one counts.",
        rich_help_panel=ATTACK_PANEL,
        show_default=False,
    ),
]
Control = Annotated[
    bool,
    typer.Option(
        "--control/--no-control",
        help="Also measure random noise of the same size, and FGSM beside stronger attacks.",
        rich_help_panel=ATTACK_PANEL,
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        "--images",
        "-n",
        metavar="N",
        help="Attack only N images, spread over the classes. Default: all.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="For checkpoints that do not say: resnet20, timm:NAME, package.module:callable, ...",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
AgainstModel = Annotated[
    str | None,
    typer.Option(
        "--against-model",
        metavar="NAME",
        help="The same for --against. Default: --model.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
AgainstWeights = Annotated[
    str | None,
    typer.Option(
        "--against-weights",
        metavar="NAME",
        help="As --weights, of the checkpoint after --against.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="N",
        help="Pixels a side. Default: as in training, or the images' own.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        "-b",
        min=1,
        metavar="N",
        help="Images at a time. Default: what fits into memory.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
Amp = Annotated[
    bool,
    typer.Option(
        "--amp",
        help="Run the network in bfloat16: faster on a GPU, but gradients and accuracies are rounded.",
        rich_help_panel=RUNTIME_PANEL,
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Start over where an earlier result would be taken up.", rich_help_panel=OUTPUT_PANEL),
]
Plot = Annotated[
    bool, typer.Option("--plot", help="Draw accuracy over eps as PNG beside the JSON.", rich_help_panel=OUTPUT_PANEL)
]
SaveImages = Annotated[
    Path | None,
    typer.Option(
        "--save-images",
        metavar="DIR",
        help="Save a few clean images, perturbations and adversarial images as PNG.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.", rich_help_panel=OUTPUT_PANEL)
]
