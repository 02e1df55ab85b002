"""The command `starfire attack`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from starfire_cli.commands.command import command
from starfire_cli.commands.options import JSON
from starfire_cli.options import option
from starfire_cli.workflows.attack.request import AttackRequest
from starfire_cli.workflows.options import OUTPUT_PANEL

if TYPE_CHECKING:
    from starfire_cli.records.attack import AttackReport


@dataclass(frozen=True, kw_only=True)
class AttackDisplay:
    """Display options of `starfire attack`."""

    plot: bool = option(False, "Draw accuracy over eps as PNG beside the JSON.", panel=OUTPUT_PANEL)
    quiet: bool = option(False, "Print warnings and errors only.", short="-q", panel=OUTPUT_PANEL)
    as_json: bool = JSON.default(False)


@command(AttackRequest, AttackDisplay)
def attack(request: AttackRequest, shown: AttackDisplay) -> None:
    """Measure how robust a network is against attacks of its input, and whether another one is more so."""
    from starfire_cli.report.attack import display
    from starfire_cli.workflows.attack.run import attack as run

    try:
        report = display(run(request), to_stderr=shown.as_json, quiet=shown.quiet)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise
    if shown.plot:
        _draw(report, shown)
    if shown.as_json:
        typer.echo(json.dumps(report.document))


def _draw(report: AttackReport, shown: AttackDisplay) -> None:
    from starfire_cli.report.attack import names
    from starfire_cli.report.console import say
    from starfire_cli.report.plot.figures.robustness import robustness_figure
    from starfire_cli.report.plot.saving import save_figures

    called = names(report)
    figure = robustness_figure(
        {called[r.file]: r.points for r in report.results},
        controls={called[r.file]: r.controls["noise"] for r in report.results if "noise" in r.controls},
        attack=report.attack,
        norm=report.norm,
    )
    picture = report.results[0].file.with_suffix(".png")
    save_figures({"robustness": figure}, picture, read=[r.path for r in report.results])
    if not shown.quiet:
        say(f"written {picture}", err=shown.as_json)
