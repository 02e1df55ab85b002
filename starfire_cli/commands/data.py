"""The command `starfire data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from starfire_cli.commands.options import DATA_PANEL, OUTPUT_PANEL, Json, SkipCorrupt

_SHARDS = "Shards"


def pack(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="The images: whatever --data takes that lies on a disk in files.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the shards.")],
    short_side: Annotated[
        int,
        typer.Option(
            "--short-side",
            min=0,
            metavar="PIXELS",
            help="Scale larger images until their shorter side has so many pixels; 0 keeps every file as it is.",
            rich_help_panel=_SHARDS,
        ),
    ] = 256,
    quality: Annotated[
        int, typer.Option("--quality", min=1, max=100, help="Of the JPEGs that are made.", rich_help_panel=_SHARDS)
    ] = 90,
    shard_size: Annotated[
        str,
        typer.Option(
            "--shard-size",
            metavar="SIZE",
            help="About so many bytes a shard (100MB, 1GB), or exactly so many images (4000).",
            rich_help_panel=_SHARDS,
        ),
    ] = "100MB",
    seed: Annotated[
        int,
        typer.Option("--seed", help="Of the order in which images go into shards.", rich_help_panel=_SHARDS),
    ] = 0,
    limit_train: Annotated[
        int | None,
        typer.Option(
            "--limit-train",
            metavar="N",
            help="Pack N training images only, spread over the classes.",
            rich_help_panel=DATA_PANEL,
            show_default=False,
        ),
    ] = None,
    limit_val: Annotated[
        int | None,
        typer.Option(
            "--limit-val",
            metavar="N",
            help="Pack N validation images only.",
            rich_help_panel=DATA_PANEL,
            show_default=False,
        ),
    ] = None,
    skip_corrupt: SkipCorrupt = False,
    workers: Annotated[
        int,
        typer.Option("--workers", "-j", min=1, help="Processes that write shards.", rich_help_panel=DATA_PANEL),
    ] = 2,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say only how it ended.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    as_json: Json = False,
) -> None:
    """Pack images into tar shards that are read from front to back; an interrupted packing goes on where it was."""
    from starfire_cli.report.data import display
    from starfire_cli.workflows.data.pack import PackRequest
    from starfire_cli.workflows.data.pack import pack as packing

    request = PackRequest(
        source=source,
        out=out,
        short_side=short_side,
        quality=quality,
        shard_size=shard_size,
        workers=workers,
        seed=seed,
        limit_train=limit_train,
        limit_val=limit_val,
        skip_corrupt=skip_corrupt,
    )
    summary = display(packing(request), quiet=quiet, to_stderr=as_json)
    if as_json:
        typer.echo(json.dumps(summary))
