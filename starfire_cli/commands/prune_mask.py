"""The command `starfire prune-mask`: prunes a trained checkpoint once, or measures the cost in accuracy."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from starfire_cli.commands.options import (
    DATA_PANEL,
    OUTPUT_PANEL,
    PRUNING_PANEL,
    BatchSize,
    CheckpointPath,
    DataSpec,
    Device,
    FcSpec,
    Json,
    KeepDense,
    MaxNonzero,
    MethodSpec,
    Only,
    OutputPath,
    Seed,
    Weights,
    Workers,
)
from starfire_cli.errors import BadOption
from starfire_cli.values import parse_list, parse_number


def prune_mask(
    checkpoint: CheckpointPath = None,
    method: MethodSpec = "window",
    target: Annotated[
        float | None,
        typer.Option(
            "--target",
            "-t",
            metavar="T",
            help="The share of weights to prune, 0 to below 1; writes a checkpoint.",
            rich_help_panel=PRUNING_PANEL,
            show_default=False,
        ),
    ] = None,
    max_nonzero: MaxNonzero = None,
    fc: FcSpec = "fine",
    keep_dense: KeepDense = None,
    only: Only = None,
    eliminate: Annotated[
        bool,
        typer.Option(
            "--eliminate",
            help="Also remove linear weights behind dead channels, without changing the outputs.",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = False,
    shrink: Annotated[
        bool,
        typer.Option(
            "--shrink",
            help="Remove dead channels for good: a smaller dense network with the same outputs.",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = False,
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            metavar="START:STOP:STEP",
            help="Write nothing; measure the accuracy at each target instead. A list works too: 0.5,0.8.",
            rich_help_panel=PRUNING_PANEL,
            show_default=False,
        ),
    ] = None,
    per_layer: Annotated[
        bool,
        typer.Option(
            "--per-layer",
            help="With --sweep: prune one layer at a time (the sensitivity of each).",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = False,
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
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate",
            help="Measure accuracy before and after, on the checkpoint's data; --data implies it.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = False,
    data: DataSpec = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", metavar="PX", help="Side of the images.", rich_help_panel=DATA_PANEL, show_default=False
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean",
            metavar="R,G,B",
            help="With which the network normalises pixels in [0, 1], where the file does not say.",
            rich_help_panel=DATA_PANEL,
            show_default=False,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option("--std", metavar="R,G,B", help="Likewise.", rich_help_panel=DATA_PANEL, show_default=False),
    ] = None,
    recalibrate: Annotated[
        int | None,
        typer.Option(
            "--recalibrate",
            metavar="N",
            min=1,
            help="Refresh BatchNorm's statistics on N training batches.",
            rich_help_panel=DATA_PANEL,
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 256,
    workers: Workers = 2,
    device: Device = "auto",
    seed: Seed = 0,
    out: OutputPath = None,
    as_json: Json = False,
    as_csv: Annotated[
        bool,
        typer.Option("--csv", help="With --sweep: print the points as CSV on stdout.", rich_help_panel=OUTPUT_PANEL),
    ] = False,
) -> None:
    """Prune a trained checkpoint once and write weights, masks and metadata; starfire train --init then fine-tunes it.

    Any checkpoint will do, and no model is needed: shapes tell. With --evaluate, or --data for other data than the
    checkpoint's, accuracy is measured before and after.
    """
    from starfire_cli.report.prune import display
    from starfire_cli.values import parse_channels
    from starfire_cli.workflows.prune.request import PruneRequest
    from starfire_cli.workflows.prune.run import prune_mask as run
    from starfire_cli.workflows.prune.trial import TrialRequest

    if as_csv and (as_json or sweep is None):
        raise BadOption("--csv prints the points of a --sweep, and not beside --json")
    request = PruneRequest(
        checkpoint=checkpoint,
        method=method,
        fc=fc,
        target=target,
        max_nonzero=max_nonzero,
        keep_dense=tuple(keep_dense or ()),
        only=tuple(only or ()),
        out=out,
        model=model,
        weights=weights,
        eliminate=eliminate,
        shrink=shrink,
        recalibrate=recalibrate,
        sweep=_targets(sweep),
        per_layer=per_layer,
        evaluate=evaluate,
        trial=TrialRequest(
            data=data,
            mean=parse_channels(mean, "--mean"),
            std=parse_channels(std, "--std"),
            image_size=image_size,
            batch_size=batch_size,
            workers=workers,
            device=device,
            seed=seed,
        ),
        command=shlex.join(["starfire", *sys.argv[1:]]),
    )
    text = display(run(request), as_json=as_json, as_csv=as_csv)
    if text is not None:
        typer.echo(text, nl=not text.endswith("\n"))


def _targets(text: str | None) -> tuple[float, ...] | None:
    """`0.1:0.9:0.1` (both ends belong to it) or `0.5,0.8` to targets. Raises BadOption."""
    if text is None:
        return None
    try:
        if ":" not in text:
            return parse_list("--sweep", text, parse_number, "0.5,0.8")
        start, stop, step = (parse_number(part) for part in text.split(":"))
        count = int((stop - start) / step + 1e-6) + 1
        if step <= 0 or not 0 < count <= 1000:
            raise ValueError(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise BadOption(
            f"--sweep {text!r} is not START:STOP:STEP, such as 0.1:0.9:0.1, or a list, such as 0.5,0.8"
        ) from None
    return tuple(round(start + i * step, 9) for i in range(count))
