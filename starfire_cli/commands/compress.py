"""The command `starfire compress`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from starfire_cli.commands.options import OUTPUT_PANEL, CheckpointPath, Device, Json, Mean, OutputPath, Std, Weights
from starfire_cli.errors import BadOption

_PACKING = "Packing"


def compress(
    checkpoint: CheckpointPath = None,
    unpack: Annotated[
        bool,
        typer.Option("--unpack", help="Turn a packed file back into a checkpoint.", rich_help_panel=OUTPUT_PANEL),
    ] = False,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FORM",
            help="Write a form for other tools instead: safetensors, prune, bitmask or onnx.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    values: Annotated[
        str,
        typer.Option(
            "--values",
            help="exact, or round weights to bf16 or fp16 and say what that costs.",
            rich_help_panel=_PACKING,
        ),
    ] = "exact",
    effort: Annotated[
        str, typer.Option("--effort", help="fast, normal or best: time spent on size.", rich_help_panel=_PACKING)
    ] = "normal",
    masks: Annotated[
        str,
        typer.Option(
            "--masks", help="stored, or from-zeros: every zero of a layer is called dead.", rich_help_panel=_PACKING
        ),
    ] = "stored",
    keep_plain: Annotated[
        bool,
        typer.Option(
            "--keep-plain",
            help="Leave every layer that was never pruned readable by any safetensors reader, also large ones.",
            rich_help_panel=_PACKING,
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Read the file back before it is named.", rich_help_panel=_PACKING),
    ] = True,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="With --values: where to measure accuracy. Default: the checkpoint's data.",
            rich_help_panel=_PACKING,
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            metavar="N",
            help="With --values: measure on N images only.",
            rich_help_panel=_PACKING,
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="SPEC",
            help="With --values or --to onnx: the network, where the file does not say.",
            rich_help_panel=_PACKING,
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    out: OutputPath = None,
    as_json: Json = False,
) -> None:
    """Pack a checkpoint into a file as small as its information; nothing is lost (--unpack gives it back)."""
    if unpack and to:
        raise BadOption(f"--unpack and --to {to} exclude each other; --to reads packed files, too")
    if unpack or to:
        way = "--unpack" if unpack else f"--to {to}"
        given = {
            f"--values {values}": values != "exact",
            f"--masks {masks}": masks != "stored",
            f"--effort {effort}": effort != "normal",
            "--keep-plain": keep_plain,
            "--no-verify": not verify,
        }
        for option in (text for text, there in given.items() if there):
            raise BadOption(f"{option} is for packing; {way} writes weights and masks as they are")
    if unpack and weights is not None:
        raise BadOption(f"--weights {weights}: a packed file holds one network")
    if to != "onnx" and (mean is not None or std is not None):
        raise BadOption("--mean and --std are for --to onnx, which writes a network that takes pixels in [0, 1]")
    if (data is not None or images is not None) and values == "exact":
        raise BadOption("--data and --images are for --values bf16 or fp16; exact values cannot change the accuracy")
    from starfire_cli.report.compress import display
    from starfire_cli.workflows.compress import run

    if unpack:
        outcomes = run.unpack(checkpoint, out)
    elif to is not None:
        from starfire_cli.values import parse_channels
        from starfire_cli.workflows.compress.export import export  # brings torchvision, slow to import

        outcomes = export(
            checkpoint,
            to,
            out,
            model=model,
            weights=weights,
            mean=parse_channels(mean, "--mean"),
            std=parse_channels(std, "--std"),
        )
    else:
        outcomes = run.compress(
            run.CompressRequest(
                checkpoint=checkpoint,
                out=out,
                values=values,
                effort=effort,
                masks=masks,
                keep_plain=keep_plain,
                verify=verify,
                data=data,
                images=images,
                model=model,
                weights=weights,
                device=device,
            )
        )
    summary = display(outcomes, to_stderr=as_json)
    if as_json:
        typer.echo(json.dumps(summary))
