"""The command `starfire data`."""

from __future__ import annotations

import json
from dataclasses import dataclass

import typer

from starfire_cli.commands.command import command
from starfire_cli.commands.options import JSON
from starfire_cli.options import option
from starfire_cli.workflows.data.request import PackRequest
from starfire_cli.workflows.options import OUTPUT_PANEL


@dataclass(frozen=True, kw_only=True)
class PackDisplay:
    """Display options of `starfire data pack`."""

    quiet: bool = option(False, "Say only how it ended.", short="-q", panel=OUTPUT_PANEL)
    as_json: bool = JSON.default(False)


@command(PackRequest, PackDisplay)
def pack(request: PackRequest, shown: PackDisplay) -> None:
    """Pack images into tar shards that are read from front to back; an interrupted packing goes on where it was."""
    from starfire_cli.report.data import display
    from starfire_cli.workflows.data.pack import pack as run

    summary = display(run(request), quiet=shown.quiet, to_stderr=shown.as_json)
    if shown.as_json:
        typer.echo(json.dumps(summary))
