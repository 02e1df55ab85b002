"""The command `starfire train`."""

from __future__ import annotations

import json
from dataclasses import dataclass

import typer

from starfire_cli.commands.command import command
from starfire_cli.commands.options import JSON
from starfire_cli.options import option
from starfire_cli.workflows.options import OUTPUT_PANEL
from starfire_cli.workflows.train.request import TrainRequest


@dataclass(frozen=True, kw_only=True)
class TrainDisplay:
    """Display options of `starfire train`."""

    logger: str = option(
        "none",
        "Also write the metrics for another viewer: {choices}.",
        panel=OUTPUT_PANEL,
        choices=("none", "tensorboard"),
    )
    quiet: bool = option(False, "Print the closing summary only.", short="-q", panel=OUTPUT_PANEL)
    as_json: bool = JSON.default(False)


@command(TrainRequest, TrainDisplay, given=True)
def train(request: TrainRequest, shown: TrainDisplay, *, given: frozenset[str]) -> None:
    """Train a sparse network: dense start, pruning era, fixed mask. With no options: on handwritten digits."""
    from starfire_cli import runtime

    runtime.shorten_spinning()
    from starfire_cli.report.train import decoding_display, display
    from starfire_cli.workflows.train.loop import train as run_training
    from starfire_cli.workflows.train.tensorboard import logged

    silent = runtime.world().rank > 0  # the first of several processes speaks for all
    records = run_training(
        request,
        given,
        decoding=decoding_display(to_stderr=shown.as_json, quiet=shown.quiet),
    )
    end = display(
        logged(records, "none" if silent else shown.logger), quiet=shown.quiet, to_stderr=shown.as_json, silent=silent
    )
    if shown.as_json and end.summary is not None:
        typer.echo(json.dumps(end.summary))
    if end.exit_code:
        raise typer.Exit(end.exit_code)
