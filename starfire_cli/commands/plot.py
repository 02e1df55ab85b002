"""The command `starfire plot`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from starfire_cli.commands.command import command
from starfire_cli.errors import BadOption
from starfire_cli.report.console import say
from starfire_cli.workflows.plot.request import PlotRequest

if TYPE_CHECKING:
    from starfire_cli.workflows.plot.draw import Found
    from starfire_cli.workflows.plot.run import Sources

_FORMATS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".txt": "terminal", "": "terminal"}


@command(PlotRequest)
def plot(request: PlotRequest) -> None:
    """Draw runs and checkpoints: accuracy, sparsity, layers, masks, robustness, trade-offs; the paper's tables."""
    from starfire_cli.report.plot.kinds import parse_kinds
    from starfire_cli.workflows.plot.run import collect_sources

    kinds = parse_kinds(request.kind)
    if request.table is not None:
        for option, given in (
            ("--kind", request.kind),
            ("--html", request.html),
            ("--layer", request.layer),
            ("--weights", request.weights),
        ):
            if given:
                raise BadOption(f"--table {request.table} and {option} exclude each other; run the command twice")
        _table(request, request.table)
        return
    for option, text in (("--format", request.format), ("--at", request.at and ",".join(map(str, request.at)))):
        if text is not None:
            raise BadOption(f"{option} {text} is for tables; add --table 1")
    _check(request.out, request.html)
    sources = collect_sources(request.paths)
    _keep(sources, out=request.out, html=request.html)
    _draw(request, sources, kinds)


def _draw(request: PlotRequest, sources: Sources, kinds: list[str]) -> None:
    from starfire_cli.report.plot.saving import save_figures
    from starfire_cli.workflows.plot.draw import draw_sources

    drawing = draw_sources(request, sources, kinds, partial(_watched, quiet=request.quiet))
    for note in drawing.notes:
        say(note, err=True)
    out, html = request.out, request.html
    if out is not None or html is None:
        for path in save_figures(
            drawing.figures, out or _beside(sources), dpi=request.dpi, several=out is None, read=sources.files()
        ):
            if not request.quiet:
                say(f"written {path}")
    if html is not None:
        from starfire_cli.formats.atomic import write_text
        from starfire_cli.report.plot.html import html_page

        drawn = {kind: partial(drawing.again, kind) for kind in drawing.figures}
        material = replace(drawing.material, notes=drawing.notes)
        write_text(html, html_page(material, drawing.groups, drawn, command=request.command))
        if not request.quiet:
            say(f"written {html}")


def _watched(opened: Iterator[Found], total: int, *, quiet: bool) -> Iterable[Found]:
    """The checkpoints as they are opened, with a bar on a terminal."""
    from rich.progress import track

    from starfire_cli.report.console import open_console

    console = open_console(stderr=True)
    shown = console.is_terminal and not quiet and total > 1
    return track(opened, "checkpoints", total, console=console, transient=True, disable=not shown)


def _table(request: PlotRequest, number: int) -> None:
    from starfire_cli.formats.atomic import write_text
    from starfire_cli.report.console import open_console
    from starfire_cli.report.plot.paper_tables import paper_tables
    from starfire_cli.report.plot.table_text import format_name, show, write
    from starfire_cli.workflows.plot.run import collect_sources

    out, form = request.out, request.format
    if out is not None and form is None and out.suffix.lower() not in _FORMATS:
        raise BadOption(f"--out {out} ends in none of .md, .tex, .csv, .txt; --format says what to write into others")
    name = format_name(form or (_FORMATS[out.suffix.lower()] if out else "terminal"))
    sources = collect_sources(request.paths)
    _keep(sources, out=out)
    tables = paper_tables(number, sources.runs, at=list(request.at or ()))
    for note in sources.notes:
        say(note, err=True)
    if out is not None:
        write_text(out, write(tables, name))
        if not request.quiet:
            say(f"written {out}")
    elif name == "terminal":
        show(open_console(), tables)
    else:
        typer.echo(write(tables, name), nl=False)


def _check(out: Path | None, html: Path | None) -> None:
    from starfire_cli.report.plot.saving import check_target

    if out is not None:
        check_target(out)
    if html is not None and not html.parent.is_dir():
        raise BadOption(f"--html {html}: there is no folder {html.parent}")


def _keep(sources: Sources, *, out: Path | None = None, html: Path | None = None) -> None:
    """Raises BadOption if what is shown would be written over."""
    from starfire_cli.formats.overwriting import refuse_overwriting
    from starfire_cli.report.plot.saving import SHOWN

    for option, path in (("--out", out), ("--html", html)):
        if path is not None:
            refuse_overwriting(path, sources.files(), option=option, noun=SHOWN)
    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise BadOption(f"--html {html}: a page's name ends in .html")


def _beside(sources: Sources) -> Path:
    """The default path of pictures: in the run's folder, or in the one that holds all that was drawn."""
    folders = [run.path for run in sources.runs] or [path.parent for path in sources.checkpoints]
    folders = folders or [curve.file.parent for curve in sources.curves]
    common, here = Path(os.path.commonpath([folder.resolve() for folder in folders])), Path.cwd()
    return (common.relative_to(here) if common.is_relative_to(here) else common) / "plot.png"
