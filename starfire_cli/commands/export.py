"""The command `starfire export`."""

from __future__ import annotations

import json
from dataclasses import dataclass

import typer

from starfire_cli.commands.command import command
from starfire_cli.commands.options import JSON
from starfire_cli.workflows.export.request import ExportRequest


@dataclass(frozen=True, kw_only=True)
class ExportDisplay:
    """Display options of `starfire export`."""

    as_json: bool = JSON.default(False)


@command(ExportRequest, ExportDisplay)
def export(request: ExportRequest, shown: ExportDisplay) -> None:
    """Write a network as machine code that runs without Python: a library for C, or a module for browsers."""
    request.check()
    from starfire_cli.report.export import display
    from starfire_cli.workflows.export.run import export_checkpoint  # brings torchvision, slow to import

    summary = display(export_checkpoint(request), to_stderr=shown.as_json)
    if shown.as_json:
        typer.echo(json.dumps(summary))
