"""The command `starfire compress`."""

from __future__ import annotations

import json
from dataclasses import dataclass

import typer

from starfire_cli.commands.command import command
from starfire_cli.commands.options import JSON
from starfire_cli.workflows.compress.request import CompressRequest


@dataclass(frozen=True, kw_only=True)
class CompressDisplay:
    """Display options of `starfire compress`."""

    as_json: bool = JSON.default(False)


@command(CompressRequest, CompressDisplay)
def compress(request: CompressRequest, shown: CompressDisplay) -> None:
    """Pack a checkpoint into a file as small as its information; nothing is lost (--unpack gives it back)."""
    request.check()
    from starfire_cli.report.compress import display
    from starfire_cli.workflows.compress import run

    if request.unpack:
        outcomes = run.unpack(request.checkpoint, request.out)
    elif request.to is not None:
        from starfire_cli.workflows.compress.export import export  # brings torchvision, slow to import

        outcomes = export(request)
    else:
        outcomes = run.compress(request)
    summary = display(outcomes, to_stderr=shown.as_json)
    if shown.as_json:
        typer.echo(json.dumps(summary))
