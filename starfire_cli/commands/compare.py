"""The command `starfire compare`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from starfire_cli.commands.command import command
from starfire_cli.commands.options import JSON
from starfire_cli.commands.train_options import parse_train_options
from starfire_cli.errors import BadOption
from starfire_cli.options import option
from starfire_cli.workflows.compare.request import SHARED, CompareRequest
from starfire_cli.workflows.options import OUTPUT_PANEL

if TYPE_CHECKING:
    from starfire_cli.records.compare import Compared
    from starfire_cli.workflows.compare.cells import BaseRequest


@dataclass(frozen=True, kw_only=True)
class CompareDisplay:
    """Display options of `starfire compare`."""

    plot: Path | None = option(
        None, "The picture: .png, .svg or .pdf. Default: compare.png in the folder.", metavar="FILE", panel=OUTPUT_PANEL
    )
    quiet: bool = option(False, "Print the table and problems only.", short="-q", panel=OUTPUT_PANEL)
    as_json: bool = JSON.default(False)


@command(CompareRequest, CompareDisplay)
def compare(request: CompareRequest, shown: CompareDisplay) -> None:
    """Train several methods at equal cost and put them side by side: one table, one picture, and all of it as JSON.

    Every method is trained at every target with every seed. What was stopped goes on by the same command.
    """
    base = _base(request)
    if shown.plot is not None:
        from starfire_cli.report.plot.saving import check_target

        check_target(shown.plot)
    from starfire_cli.report.compare_methods import display, stopped_line
    from starfire_cli.workflows.compare.run import compare as run

    try:
        end = display(run(request, base), quiet=shown.quiet, to_stderr=shown.as_json)
    except KeyboardInterrupt:
        typer.echo(stopped_line(request.command), err=True)
        raise
    if isinstance(end, int):
        raise typer.Exit(128 + end)
    if end.rows:
        _draw(end, shown)
    if shown.as_json:
        typer.echo(json.dumps(end.document))
    if end.failed:
        raise typer.Exit(1)


def _base(request: CompareRequest) -> BaseRequest:
    """The training request that all cells share: the options that both commands have, and those after `--`."""
    from starfire_cli.workflows.compare.cells import BaseRequest

    train, given = parse_train_options(request.train_options)
    own = {name: value for name in SHARED if (value := getattr(request, name)) is not None}
    for name in own.keys() & given:
        if own[name] != getattr(train, name):
            flag = f"--{name.replace('_', '-')}"
            raise BadOption(f"{flag} {own[name]} and, after --, {flag} {getattr(train, name)}: give one of the two")
    return BaseRequest(request=dataclasses.replace(train, **own), given=given | own.keys())


def _draw(end: Compared, shown: CompareDisplay) -> None:
    from starfire_cli.report.console import say
    from starfire_cli.report.plot.figures.methods import methods_figure
    from starfire_cli.report.plot.saving import save_figures

    picture = shown.plot or end.folder / "compare.png"
    save_figures({"compare": methods_figure(end.rows, eps=end.eps)}, picture)
    if not shown.quiet:
        say(f"written {picture}", err=shown.as_json)
