"""The options that several commands share, so that they mean and say the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starfire_cli.options import Option
from starfire_cli.registry import Family

DATA_PANEL = "Data"
PRUNING_PANEL = "Pruning"
RUNTIME_PANEL = "Runtime"
OUTPUT_PANEL = "Output"

# Read from the folders: importing the families themselves would import torch.
_METHODS = Family[object]("pruning method", "starfire_cli.pruning.methods")
_CONV, _LINEAR = (", ".join(_METHODS.taking(kind).names()) for kind in ("conv", "linear"))

# What a command works on
CheckpointPath = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CHECKPOINT]",
        help="A checkpoint of any kind, or a run folder (its best checkpoint). Default: the newest run.",
        show_default=False,
    ),
]
RequiredCheckpointPath = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of any kind, or a run folder (its best checkpoint).")
]

Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="NAME",
        help="Of a file with several networks: model (what was trained), ema (its average), or a name in the file.",
        show_default=False,
    ),
]

# Data
DataSpec = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="A path whose layout is recognised, a name (digits) or NAME:PATH. Default: as the checkpoint says.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", "-b", min=1, help="Images at a time.", rich_help_panel=DATA_PANEL)
]
Workers = Annotated[
    int,
    typer.Option("--workers", "-j", min=0, help="Processes that read and decode images.", rich_help_panel=DATA_PANEL),
]
SkipCorrupt = Annotated[
    bool,
    typer.Option(
        "--skip-corrupt", help="Leave out images that cannot be read, and count them.", rich_help_panel=DATA_PANEL
    ),
]

# Pruning
MethodSpec = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="SPEC",
        help=f"How convolutions are pruned: {_CONV}; with options as in intra:share=0.4.",
        rich_help_panel=PRUNING_PANEL,
    ),
]
FcSpec = Annotated[
    str,
    typer.Option(
        "--fc",
        metavar="SPEC",
        help=f"How linear layers are pruned: {_LINEAR}; with options as in block:n=2.",
        rich_help_panel=PRUNING_PANEL,
    ),
]
Target = Annotated[
    float,
    typer.Option(
        "--target", "-t", metavar="T", help="The final sparsity threshold, in [0, 1).", rich_help_panel=PRUNING_PANEL
    ),
]
MaxNonzero = Annotated[
    int | None,
    typer.Option(
        "--max-nonzero",
        metavar="N",
        help="At most N weights stay in a 3x3 window; the same as max_nonzero=N in --method.",
        rich_help_panel=PRUNING_PANEL,
        show_default=False,
    ),
]
KeepDense = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-dense",
        metavar="GLOB",
        help="Leave layers whose name matches unpruned; may be repeated.",
        rich_help_panel=PRUNING_PANEL,
        show_default=False,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="GLOB",
        help="Prune only layers whose name matches; may be repeated.",
        rich_help_panel=PRUNING_PANEL,
        show_default=False,
    ),
]

# Where and how
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, ...", rich_help_panel=RUNTIME_PANEL),
]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.", rich_help_panel=RUNTIME_PANEL)]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="Only kernels that give the same bits every time.", rich_help_panel=RUNTIME_PANEL
    ),
]

# What comes out
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON object on stdout.", rich_help_panel=OUTPUT_PANEL),
]
OutputPath = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="PATH", help="Where to write.", rich_help_panel=OUTPUT_PANEL, show_default=False
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="R,G,B",
        help="What the network's input was normalised by, in [0, 1]; one number counts for all three.",
        rich_help_panel=DATA_PANEL,
        show_default=False,
    ),
]
Std = Annotated[
    str | None,
    typer.Option("--std", metavar="R,G,B", help="Likewise.", rich_help_panel=DATA_PANEL, show_default=False),
]

JSON = Option(flags=("--json",), panel=OUTPUT_PANEL, help="Print the result as one JSON object on stdout.")
