"""The command `starfire bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from starfire_cli.commands.options import OUTPUT_PANEL, RUNTIME_PANEL, CheckpointPath, Json, Mean, Std, Weights


def bench(
    checkpoint: CheckpointPath = None,
    batch: Annotated[
        str, typer.Option("--batch", "-b", metavar="N,N,...", help="Images of a call; each number is timed.")
    ] = "1,16",
    image: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="CxHxW",
            help="The image, such as 3x224x224 or 224. Default: as the checkpoint says.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            help="Of every way alike. Default: as many as torch takes.",
            rich_help_panel=RUNTIME_PANEL,
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", help="Of timing, for each way and batch size.", rich_help_panel=RUNTIME_PANEL),
    ] = 3.0,
    compile_too: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Whether torch.compile takes part; it needs a C++ compiler and a minute for each batch size.",
            rich_help_panel=RUNTIME_PANEL,
        ),
    ] = True,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="SPEC",
            help="The network, where the file does not say: resnet50, timm:NAME, package.module:callable.",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            "--num-classes",
            metavar="N",
            min=1,
            help="How many logits it gives, where neither file nor weights say.",
            show_default=False,
        ),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Also list how each layer runs, and why.", rich_help_panel=OUTPUT_PANEL),
    ] = False,
    as_json: Json = False,
) -> None:
    """Time a network on this CPU: dense by torch, ONNX Runtime and OpenVINO, and sparse by its live weights.

    All take turns in one run, with the same images and threads, and their outputs are compared.
    """
    from starfire_cli.report.bench import display
    from starfire_cli.values import parse_channels
    from starfire_cli.workflows.bench.run import BenchRequest
    from starfire_cli.workflows.bench.run import bench as run_bench

    request = BenchRequest(
        checkpoint=checkpoint,
        batch=batch,
        image=image,
        threads=threads,
        seconds=seconds,
        compile=compile_too,
        model=model,
        weights=weights,
        num_classes=num_classes,
        mean=parse_channels(mean, "--mean"),
        std=parse_channels(std, "--std"),
    )
    text = display(run_bench(request), layers=layers, as_json=as_json)
    if text is not None:
        typer.echo(text)
