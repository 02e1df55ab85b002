"""The command `starfire prune-mask`: prunes a trained checkpoint once, or measures the cost in accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from starfire_cli.commands.command import command
from starfire_cli.commands.options import JSON
from starfire_cli.errors import BadOption
from starfire_cli.options import option
from starfire_cli.workflows.options import OUTPUT_PANEL
from starfire_cli.workflows.prune.request import PruneRequest


@dataclass(frozen=True, kw_only=True)
class PruneDisplay:
    """Display options of `starfire prune-mask`."""

    as_json: bool = JSON.default(False)
    as_csv: bool = option(
        False, "With --sweep: print the points as CSV on stdout.", flags=("--csv",), panel=OUTPUT_PANEL
    )


@command(PruneRequest, PruneDisplay)
def prune_mask(request: PruneRequest, shown: PruneDisplay) -> None:
    """Prune a trained checkpoint once and write weights, masks and metadata; starfire train --init then fine-tunes it.

    Any checkpoint will do, and no model is needed: shapes tell. With --evaluate, or --data for other data than the
    checkpoint's, accuracy is measured before and after.
    """
    from starfire_cli.report.prune import display
    from starfire_cli.workflows.prune.run import prune_mask as run

    if shown.as_csv and (shown.as_json or request.sweep is None):
        raise BadOption("--csv prints the points of a --sweep, and not beside --json")
    text = display(run(request), as_json=shown.as_json, as_csv=shown.as_csv)
    if text is not None:
        typer.echo(text, nl=not text.endswith("\n"))
