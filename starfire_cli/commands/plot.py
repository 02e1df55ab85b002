"""The command `starfire plot`."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starfire_cli.commands.options import OUTPUT_PANEL, Weights
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.report.console import say
from starfire_cli.report.plot.kinds import KINDS
from starfire_cli.values import parse_list, parse_whole

if TYPE_CHECKING:
    from starfire_cli.records.plot import Material
    from starfire_cli.report.plot.groups import Group
    from starfire_cli.workflows.plot.run import Sources

_FORMATS = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".txt": "terminal", "": "terminal"}


def plot(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]",
            help="Run folders, folders of them, checkpoints, results of attack or compress. Default: the newest run.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            "-k",
            metavar="KIND",
            help=f"{', '.join(KINDS)}; several with commas. Default: what the paths allow.",
            show_default=False,
        ),
    ] = None,
    x: Annotated[str, typer.Option("--x", help="Time in epoch or step.")] = "epoch",
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            metavar="GLOB",
            help="Layers whose masks kernels shows. Default: an early, a middle and a late one.",
            show_default=False,
        ),
    ] = None,
    weights: Weights = None,
    width: Annotated[
        float,
        typer.Option("--width", min=3, max=20, help="Inches; 5 or less lays pictures out for one column."),
    ] = 7.2,
    dpi: Annotated[int, typer.Option("--dpi", min=50, max=1200, help="Dots an inch of PNG.")] = 200,
    table: Annotated[
        int | None,
        typer.Option("--table", metavar="N", help="Table 1, 2, 5, 6, 7 or 8 of the paper instead.", show_default=False),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="E[,E]",
            help="Epochs after which tables read accuracies. Default: the last, and nine tenths of it.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="Of a table: terminal, markdown, latex or csv. Default: by --out's ending.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write one self-contained page with everything.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help=".pdf: a page each; .png, .svg: a file each. Default: plot-KIND.png beside what is drawn.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print problems only.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
) -> None:
    """Draw runs and checkpoints: accuracy, sparsity, layers, masks, robustness, trade-offs; the paper's tables."""
    from starfire_cli.report.plot.kinds import parse_kinds
    from starfire_cli.workflows.plot.run import collect_sources

    kinds = parse_kinds(kind or [])
    if x not in ("epoch", "step"):
        raise BadOption(f"--x {x!r} is neither epoch nor step")
    if table is not None:
        for option, given in (("--kind", kind), ("--html", html), ("--layer", layer), ("--weights", weights)):
            if given:
                raise BadOption(f"--table {table} and {option} exclude each other; run the command twice")
        _table(paths or [], table, at, format, out, quiet)
        return
    for option, text in (("--format", format), ("--at", at)):
        if text is not None:
            raise BadOption(f"{option} {text} is for tables; add --table 1")
    _check(out, html)
    sources = collect_sources(paths or [])
    _keep(sources, out=out, html=html)
    _draw(sources, kinds, axis=x, layer=layer, weights=weights, width=width, dpi=dpi, out=out, html=html, quiet=quiet)


def _draw(
    sources: Sources,
    kinds: list[str],
    *,
    axis: str,
    layer: str | None,
    weights: str | None,
    width: float,
    dpi: int,
    out: Path | None,
    html: Path | None,
    quiet: bool,
) -> None:
    from starfire_cli.report.plot.groups import group_runs
    from starfire_cli.report.plot.kinds import default_kinds, draw, omission_notes
    from starfire_cli.report.plot.saving import save_figures

    groups = group_runs(sources.runs)
    asked = bool(kinds)
    kinds = kinds or default_kinds(sources.runs, sources.checkpoints, sources.curves)
    material = _open(sources, kinds, groups, layer, weights, quiet)
    figures, problems = {}, []
    for name in kinds:
        try:
            figures[name] = draw(name, material, axis=axis, width=width, groups=groups)
        except StarfireError as error:
            problems.append(error)
    if not figures:
        noted = "; ".join(material.notes)
        if not problems:
            raise StarfireError(f"there is nothing to draw yet: {noted}")
        raise StarfireError(f"{problems[0]} ({noted})") if noted else problems[0]
    said = [f"left out: {problem}" for problem in problems] if asked else []
    notes = (*said, *material.notes, *omission_notes(list(figures), material, groups, sources.checkpoints))
    for note in notes:
        say(note, err=True)
    if out is not None or html is None:
        for path in save_figures(figures, out or _beside(sources), dpi=dpi, several=out is None, read=sources.files()):
            if not quiet:
                say(f"written {path}")
    if html is not None:
        from starfire_cli.formats.atomic import write_text
        from starfire_cli.report.plot.html import html_page

        drawn = {
            name: (lambda inches, name=name: draw(name, material, axis=axis, width=inches, groups=groups))
            for name in figures
        }
        write_text(
            html,
            html_page(replace(material, notes=notes), groups, drawn, command=shlex.join(["starfire", *sys.argv[1:]])),
        )
        if not quiet:
            say(f"written {html}")


def _open(
    sources: Sources, kinds: list[str], groups: list[Group], layer: str | None, weights: str | None, quiet: bool
) -> Material:
    """Look into the checkpoints that the pictures need."""
    from rich.progress import track

    from starfire_cli.report.console import open_console
    from starfire_cli.report.plot.groups import with_experiment_titles
    from starfire_cli.report.plot.kinds import checkpoints_to_open
    from starfire_cli.workflows.plot.run import build_material

    paths = checkpoints_to_open(kinds, groups, sources.checkpoints)
    networks = []
    if paths:
        from starfire_cli.records.plot import NetworkPicture
        from starfire_cli.workflows.plot.networks import open_networks

        console = open_console(stderr=True)
        looking = open_networks(sources, paths, masks="kernels" in kinds, layers=layer, weights=weights)
        shown = console.is_terminal and not quiet and len(paths) > 1
        for found in track(looking, "checkpoints", len(paths), console=console, transient=True, disable=not shown):
            if isinstance(found, NetworkPicture):
                networks.append(found)
            else:
                sources.notes.append(found)
    return with_experiment_titles(build_material(sources, networks), groups)


def _table(paths: list[Path], number: int, at: str | None, form: str | None, out: Path | None, quiet: bool) -> None:
    from starfire_cli.formats.atomic import write_text
    from starfire_cli.report.console import open_console
    from starfire_cli.report.plot.paper_tables import paper_tables
    from starfire_cli.report.plot.table_text import format_name, show, write
    from starfire_cli.workflows.plot.run import collect_sources

    if out is not None and form is None and out.suffix.lower() not in _FORMATS:
        raise BadOption(f"--out {out} ends in none of .md, .tex, .csv, .txt; --format says what to write into others")
    name = format_name(form or (_FORMATS[out.suffix.lower()] if out else "terminal"))
    epochs = _epochs(at)
    sources = collect_sources(paths)
    _keep(sources, out=out)
    tables = paper_tables(number, sources.runs, at=epochs)
    for note in sources.notes:
        say(note, err=True)
    if out is not None:
        write_text(out, write(tables, name))
        if not quiet:
            say(f"written {out}")
    elif name == "terminal":
        show(open_console(), tables)
    else:
        typer.echo(write(tables, name), nl=False)


def _epochs(text: str | None) -> list[int]:
    epochs = [] if text is None else list(parse_list("--at", text, parse_whole, "90,100"))
    if len(epochs) > 2 or any(epoch < 1 for epoch in epochs):
        raise BadOption(f"--at {text!r} is not one epoch, or two as in 90,100")
    return epochs


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
    """Where pictures go that were given no place: into the run, or the folder that holds all that was drawn."""
    folders = [run.path for run in sources.runs] or [path.parent for path in sources.checkpoints]
    folders = folders or [curve.file.parent for curve in sources.curves]
    return Path(os.path.commonpath([folder.resolve() for folder in folders])) / "plot.png"
